from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noisy, picture, write_set
from PIL import Image
from safetensors.torch import save_file

from medopt.core.errors import ConfigError, DataError
from medopt.core.records import Case
from medopt.data.cache import image_digest
from medopt.data.images_seen import SEEN, encode_seen, images_seen, read_content, refuse_seen, write_seen
from medopt.data.leave_out import leave_out
from medopt.training.checkpoint import write_tensors


def start(path: Path, cases: list[Case], root: Path) -> Path:
    digests = [one for content in read_content(cases, root) for one in content.digests]
    write_tensors(path, {"conv1.weight": torch.zeros(1)}, {SEEN: encode_seen(digests)})
    return path


def test_a_start_lists_two_digests_an_image(tmp_path: Path) -> None:
    cases = write_set(tmp_path)
    assert len(images_seen(start(tmp_path / "s.safetensors", cases, tmp_path))) == 2 * len(cases)


def test_a_start_that_saw_a_test_image_is_refused(tmp_path: Path) -> None:
    train, test = write_set(tmp_path)[:12], write_set(tmp_path)[18:]
    refuse_seen(start(tmp_path / "s.safetensors", train, tmp_path), test, tmp_path)
    saw = start(tmp_path / "saw.safetensors", [*train, test[2]], tmp_path)
    with pytest.raises(DataError, match=r"saw.safetensors was trained on 1 of the 6 images .* 020\.png"):
        refuse_seen(saw, test, tmp_path)


def test_every_image_of_a_case_is_looked_at(tmp_path: Path) -> None:
    """Of cases of two images; only the second one of the test case was seen before."""
    cases = write_set(tmp_path)
    pair = Case("c", "p", "018.png", (0,), "test", channels=("018.png", "002.png"))
    saw = start(tmp_path / "s.safetensors", cases[:3], tmp_path)
    with pytest.raises(DataError, match=r"1 of the 1 images"):
        refuse_seen(saw, [pair], tmp_path)
    trained = Case("t", "q", "003.png", (0,), "train", channels=("003.png", "004.png", ""))
    write_seen(tmp_path / "run", [trained], tmp_path, earlier=[b"12345678"])
    seen = images_seen(tmp_path / "run" / "best.safetensors")
    assert len(seen) == 3 and b"12345678" in seen
    assert seen & read_content([cases[4]], tmp_path)[0].digests
    own = [cases[2], cases[5]]
    left = leave_out(own, read_content(own, tmp_path), [pair], read_content([pair], tmp_path))
    assert [own[row].image for row in left.remaining] == ["005.png"]
    Image.fromarray(noisy(picture(2))).save(tmp_path / "near.png")
    own = [Case("n", "n", "near.png", (), "train")]
    assert leave_out(own, read_content(own, tmp_path), [pair], read_content([pair], tmp_path)).near_copies == 1


def test_an_archive_is_hashed_once_for_all_its_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    digests: dict[str, str] = {}
    first = image_digest(tmp_path, "a.npz#images/0", digests)
    (tmp_path / "a.npz").unlink()
    second = image_digest(tmp_path, "a.npz#images/1", digests)
    assert first != second and first.partition("#")[0] == second.partition("#")[0]


def test_the_same_pixels_in_another_format_are_the_same_image(tmp_path: Path) -> None:
    saw = start(tmp_path / "s.safetensors", write_set(tmp_path)[:1], tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "other.tif")
    with pytest.raises(DataError, match=r"1 of the 1 images"):
        refuse_seen(saw, [Case("c", "p", "other.tif", (0,), "test")], tmp_path)


def test_the_same_bytes_under_another_name_are_the_same_image(tmp_path: Path) -> None:
    saw = start(tmp_path / "s.safetensors", write_set(tmp_path)[:1], tmp_path)
    (tmp_path / "x.png").write_bytes((tmp_path / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"1 of the 1 images"):
        refuse_seen(saw, [Case("c", "p", "x.png", (0,), "test")], tmp_path)


def test_a_test_image_that_cannot_be_read_is_no_image_that_was_not_seen(tmp_path: Path) -> None:
    saw = start(tmp_path / "s.safetensors", write_set(tmp_path)[:2], tmp_path)
    (tmp_path / "020.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot be told: 020\.png"):
        refuse_seen(saw, [Case("c", "p", "020.png", (0,), "test")], tmp_path)


def test_other_files_of_weights_have_seen_nothing_that_is_known(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert images_seen(tmp_path / "plain.safetensors") == frozenset()
    assert images_seen(tmp_path / "weights.pth") == frozenset()
    refuse_seen(tmp_path / "plain.safetensors", [Case("c", "p", "not there.png", (0,), "test")], tmp_path)
    write_tensors(tmp_path / "cut.safetensors", {"a": torch.zeros(1)}, {SEEN: "AAAA"})
    with pytest.raises(ConfigError, match="damaged"):
        images_seen(tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match="There is no file of weights"):
        images_seen(tmp_path / "nowhere.safetensors")


def test_copies_near_copies_and_their_patients_are_left_out(tmp_path: Path) -> None:
    test = write_set(tmp_path / "study")[18:21]
    own = tmp_path / "own"
    own.mkdir()
    pictures = {
        "copy.tif": picture(18),  # the same pixels in another format
        "near.png": noisy(picture(19)),
        "mirrored.png": noisy(picture(20))[:, ::-1],
        "of the patient of the copy.png": picture(100),
        "other.png": picture(101),
        "pseudonym.png": picture(102),
    }
    for name, pixels in pictures.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(own / name)
    patients = ["a", "b", "c", "a", "d", test[1].patient_id]
    cases = [Case(name, patient, name, (), "train") for name, patient in zip(pictures, patients, strict=True)]
    left = leave_out(cases, read_content(cases, own), test, read_content(test, tmp_path / "study"))
    assert [cases[row].image for row in left.remaining] == ["other.png"]
    assert (left.copies, left.near_copies, left.of_their_patients) == (1, 2, 2)
    assert leave_out(cases, read_content(cases, own), [], []).remaining == tuple(range(6))

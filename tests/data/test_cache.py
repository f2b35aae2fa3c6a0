from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from medopt.config import Prepare
from medopt.core.errors import ConfigError, DataError, StorageError
from medopt.core.files import atomic, write_text
from medopt.core.records import Case, Volume
from medopt.data.cache import PreparedCache, as_tensor, content_digest, load_facts, load_prepared
from medopt.imaging import parallel
from medopt.transforms.prepare import PrepareChain


def case(image: str) -> Case:
    return Case(case_id=image, patient_id=image, image=image, label=(0,), split="train")


def chain(**settings: Any) -> PrepareChain:
    return PrepareChain(Prepare.model_validate({"size": [16, 16], **settings}))


def draw(path: Path, seed: int) -> str:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24)).astype(np.uint8)).save(path)
    return path.name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for seed in range(4):
        draw(tmp_path / "data" / f"{seed}.png", seed)
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> PreparedCache:
    return PreparedCache(tmp_path / "cache", chain())


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hears of every image that the chain really prepares."""
    heard: list[str] = []
    original = PrepareChain.consume

    def listen(self: PrepareChain, volume: Volume, where: str = "") -> torch.Tensor:
        heard.append(Path(where.removesuffix(": ")).name)
        return original(self, volume, where)

    monkeypatch.setattr(PrepareChain, "consume", listen)
    monkeypatch.setattr(parallel, "SERIAL_SECONDS", math.inf)  # what another process prepares is not heard of here
    return heard


def test_an_entry_holds_what_the_chain_gives_in_the_order_of_the_cases(cache: PreparedCache, root: Path) -> None:
    names = ["2.png", "0.png", "1.png"]
    files = cache.fill([case(name) for name in names], root)
    for name, path in zip(names, files, strict=True):
        assert torch.equal(as_tensor(path), chain()(root / name))
        assert load_prepared(path).dtype == np.float32
        assert np.load(path, mmap_mode="r").dtype == np.uint16


def test_a_second_fill_prepares_nothing(cache: PreparedCache, root: Path, prepared: list[str]) -> None:
    cases = [case(f"{k}.png") for k in range(4)]
    first = cache.fill(cases, root)
    assert len(prepared) == 4
    assert cache.fill(cases, root) == first and len(prepared) == 4


def test_an_entry_tells_how_the_scan_was_acquired(cache: PreparedCache, root: Path) -> None:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientAge, dataset.PatientSex, dataset.PatientName = "018M", "F", "Unheard^Of"
    dataset.save_as(root / "ct.dcm")
    ct, png = cache.fill([case("ct.dcm"), case("0.png")], root)
    facts = load_facts(ct)
    assert (facts.modality, facts.scanner, facts.sex, facts.age) == ("CT", "GE MEDICAL SYSTEMS RHAPSODE", "F", "1")
    assert (facts.shape, facts.spacing_mm) == ((128, 128), (0.6615, 0.6615))
    assert (load_facts(png).shape, load_facts(png).spacing_mm, load_facts(png).modality) == ((20, 24), (), "")
    assert b"Unheard" not in ct.read_bytes()


def test_an_entry_that_notes_other_facts_is_made_again(
    cache: PreparedCache, root: Path, prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of another version, whole in itself."""
    with monkeypatch.context() as earlier:
        earlier.setattr("medopt.data.cache.asdict", lambda facts: {"modality": facts.modality, "gone": ""})
        (path,) = cache.fill([case("0.png")], root)
    with pytest.raises(StorageError, match="run again"):
        load_facts(path)
    cache.fill([case("0.png")], root)
    assert len(prepared) == 2 and load_facts(path).shape == (20, 24)


def test_the_same_content_under_another_path_has_the_same_entry(cache: PreparedCache, root: Path) -> None:
    shutil.copy(root / "0.png", root / "copy.png")
    one, copy, other = cache.fill([case("0.png"), case("copy.png"), case("1.png")], root)
    assert one == copy != other


def test_many_threads_may_make_one_entry(cache: PreparedCache, root: Path) -> None:
    for k in range(30):
        shutil.copy(root / "0.png", root / f"copy{k}.png")
    files = cache.fill([case(f"copy{k}.png") for k in range(30)], root, workers=8)
    assert len(set(files)) == 1
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == [files[0].name]


def test_two_threads_writing_one_file_do_not_share_their_unfinished_copy(tmp_path: Path) -> None:
    path = tmp_path / "entry"

    def other() -> None:
        write_text(path, "the other's")

    with atomic(path) as part:
        part.write_text("mine")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert part.read_text() == "mine" and path.read_text() == "the other's"
    assert path.read_text() == "mine"


def test_changed_content_under_the_same_path_has_another_entry(cache: PreparedCache, root: Path) -> None:
    (before,) = cache.fill([case("0.png")], root)
    draw(root / "0.png", 99)
    (after,) = cache.fill([case("0.png")], root)
    assert before != after and torch.equal(as_tensor(after), chain()(root / "0.png"))


def test_another_chain_has_another_folder(cache: PreparedCache, root: Path, tmp_path: Path) -> None:
    other = PreparedCache(tmp_path / "cache", chain(fit="stretch"))
    (one,), (two,) = cache.fill([case("0.png")], root), other.fill([case("0.png")], root)
    assert cache.folder != other.folder and one.name == two.name
    assert not torch.equal(as_tensor(one), as_tensor(two))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an array at all"),
        lambda path: np.save(path, np.zeros((1, 8, 8), np.float32)),
        lambda path: np.save(path, np.zeros((1, 16, 16), np.float64)),
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"!" + path.read_bytes()[-8:]),
        lambda path: path.unlink(),
    ],
    ids=["cut off", "empty", "rubbish", "another shape", "another type", "one byte", "gone"],
)
def test_a_damaged_entry_is_made_again(cache: PreparedCache, root: Path, damage: Callable[[Path], Any]) -> None:
    (path,) = cache.fill([case("0.png")], root)
    damage(path)
    assert cache.fill([case("0.png")], root) == [path]
    assert torch.equal(as_tensor(path), chain()(root / "0.png"))


def test_every_unreadable_image_is_listed_with_its_reason(cache: PreparedCache, root: Path) -> None:
    (root / "bad.png").write_bytes((root / "0.png").read_bytes()[:90])
    (root / "empty.png").write_bytes(b"")
    with pytest.raises(DataError) as refused:
        cache.fill([case(name) for name in ("0.png", "bad.png", "empty.png", "missing.png", "1.png")], root)
    words = str(refused.value)
    assert words.startswith("3 of 5 images were refused")
    assert all(name in words for name in ("bad.png", "empty.png", "missing.png")) and "1.png:" not in words


def test_members_of_an_archive_are_entries_of_their_own(cache: PreparedCache, root: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20)).astype(np.uint8)
    np.savez(root / "a.npz", train=images, test=images[::-1])
    files = cache.fill([case("a.npz#train/1"), case("a.npz#train/3"), case("a.npz#test/1")], root)
    assert len(set(files)) == 3
    assert torch.equal(as_tensor(files[1]), as_tensor(files[2])) and not torch.equal(
        as_tensor(files[0]), as_tensor(files[1])
    )


def test_a_series_is_its_files_whatever_they_are_called(tmp_path: Path) -> None:
    for name, order in (("one", ("a", "b")), ("two", ("z", "y")), ("three", ("a", "c"))):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / order[0]).write_bytes(b"first slice")
        (tmp_path / name / "inner" / order[1]).write_bytes(b"second slice" if name != "three" else b"another slice")
    one, two, three = (content_digest(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three


def fill_from_a_process(folder: Path, root: Path, start: Any, answers: Any) -> None:
    start.wait()
    try:
        answers.put([str(p) for p in PreparedCache(folder, chain()).fill([case(f"{k}.png") for k in range(4)], root)])
    except Exception as error:
        answers.put(error)


def test_two_processes_may_fill_at_once(root: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    start, answers = spawn.Event(), spawn.Queue()
    places = (tmp_path / "cache", root, start, answers)
    runs = [spawn.Process(target=fill_from_a_process, args=places) for _ in range(2)]
    for run in runs:
        run.start()
    start.set()
    found = [answers.get(timeout=60) for _ in runs]
    for run in runs:
        run.join(60)
    assert found[0] == found[1]
    assert all(torch.equal(as_tensor(Path(path)), chain()(root / f"{k}.png")) for k, path in enumerate(found[0]))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_progress_is_told_for_every_case(cache: PreparedCache, root: Path) -> None:
    told: list[Any] = []

    class Reporter:
        def progress(self, total: int, what: str) -> Callable[..., None]:
            told.append((total, what))
            return lambda n=1, **fields: told.append(n)

    cache.fill([case("0.png"), case("1.png")], root, Reporter())  # type: ignore[arg-type]
    assert told == [(2, "preparing images"), 1, 1]


def test_a_full_disk_is_an_error_with_the_way_out_and_leaves_nothing(
    cache: PreparedCache, root: Path, tiny_disk: Callable[[int], Path]
) -> None:
    full = PreparedCache(tiny_disk(64) / "cache", chain(size=[256, 256]))
    with pytest.raises(StorageError, match=r"disk is full.*Free some space"):
        full.fill([case("0.png")], root)
    assert [path for path in full.folder.rglob("*") if path.is_file()] == []


def test_an_entry_that_vanished_after_the_fill_is_an_error_not_a_traceback(cache: PreparedCache, root: Path) -> None:
    (path,) = cache.fill([case("0.png")], root)
    path.unlink()
    with pytest.raises(StorageError, match="vanished"):
        load_prepared(path)


def test_a_tensor_of_an_entry_is_a_copy(cache: PreparedCache, root: Path) -> None:
    (path,) = cache.fill([case("0.png")], root)
    as_tensor(path).zero_()
    assert as_tensor(path).any()


def size(cache: PreparedCache) -> int:
    return sum(path.stat().st_size for path in cache.root.rglob("*.npy"))


def test_the_cache_keeps_to_its_size_and_what_was_used_last(root: Path, tmp_path: Path) -> None:
    first = PreparedCache(tmp_path / "cache", chain())
    old, used = first.fill([case("0.png"), case("1.png")], root)
    os.utime(old, (1, 1))
    os.utime(used, (2, 2))
    first.fill([case("1.png")], root)  # used once more
    entry = size(first) // 2
    bounded = PreparedCache(tmp_path / "cache", chain(fit="stretch"), max_gb=2.5 * entry / 1e9)
    (new,) = bounded.fill([case("2.png")], root)
    assert (old.exists(), used.exists(), new.exists()) == (False, True, True)


def test_what_the_present_cases_need_is_never_taken_away(root: Path, tmp_path: Path) -> None:
    files = PreparedCache(tmp_path / "cache", chain(), max_gb=0).fill([case(f"{k}.png") for k in range(4)], root)
    assert all(path.exists() for path in files)


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_limit_that_is_no_size_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDOPT_CACHE_GB", text)
    with pytest.raises(ConfigError, match="MEDOPT_CACHE_GB"):
        PreparedCache(tmp_path, chain())

"""Copies of a picture: found among all pairs, told apart from pictures that only look alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import noisy, picture, write_set
from real_data import REPO, real

from medopt.core.records import Case
from medopt.manifest import duplicates
from medopt.manifest.duplicates import (
    DuplicatePair,
    count_leaked,
    duplicate_findings,
    find_duplicates,
    thumbnail,
)
from medopt.manifest.image_facts import pixel_digest, read_facts
from medopt.manifest.table import read_manifest

MANIFESTS = REPO / "data_manifests"


def stacked(*images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    return [image[None].astype(np.float32) for image in images]


def pairs_of(*images: NDArray[np.uint8]) -> list[DuplicatePair]:
    arrays = stacked(*images)
    return find_duplicates(
        {row: thumbnail(one) for row, one in enumerate(arrays)}, lambda row: pixel_digest(arrays[row])
    )


@pytest.mark.parametrize(
    ("shape", "small"),
    [((1, 100, 75), (32, 32)), ((3, 28, 28), (28, 28)), ((1, 20, 64), (20, 32)), ((1, 40, 9, 64), (16, 9, 16))],
)
def test_a_thumbnail_averages_areas(shape: tuple[int, ...], small: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    found = thumbnail(array)
    assert found.shape == small
    assert found.mean() == pytest.approx(array.mean(), rel=1e-5)
    if shape[1:] == small:
        np.testing.assert_allclose(found, array.mean(0), rtol=1e-6)


def test_exact_near_mirrored_and_other_pictures_are_told_apart() -> None:
    one, two = picture(1), picture(2)
    found = pairs_of(one, two, one.copy(), noisy(one), np.ascontiguousarray(two[:, ::-1]), picture(3))
    assert [(pair.first, pair.second, pair.exact, pair.mirrored) for pair in found] == [
        (0, 2, True, False),
        (1, 4, False, True),
        (0, 3, False, False),
        (2, 3, False, False),
    ]


def test_a_copy_of_another_size_is_near() -> None:
    large = np.kron(picture(1), np.ones((3, 3))).astype(np.uint8)
    (pair,) = pairs_of(picture(1), large, picture(2))
    assert (pair.first, pair.second, pair.exact) == (0, 1, False)


def test_constant_pictures_are_like_nothing() -> None:
    assert pairs_of(*[np.full((40, 40), value, np.uint8) for value in (7, 7, 200)]) == []


def test_pictures_that_share_their_anatomy_are_no_copies() -> None:
    """As radiographs do: over .99 alike, by what all of them have."""
    random, anatomy = np.random.default_rng(0), 100 * np.kron(np.eye(8), np.ones((8, 8)))
    images = [anatomy + np.kron(random.normal(0, 3, (8, 8)), np.ones((8, 8))) for _ in range(60)]
    flat = np.array(images).reshape(60, -1)
    assert np.corrcoef(flat)[np.triu_indices(60, 1)].mean() > 0.99
    images.append(images[7] + random.normal(0, 0.5, (64, 64)))
    found = find_duplicates({row: thumbnail(one[None].astype(np.float32)) for row, one in enumerate(images)}, str)
    assert [(pair.first, pair.second) for pair in found] == [(7, 60)]


def test_blocks_give_the_same_pairs_as_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(seed) for seed in range(20)]
    images += [noisy(images[3]), noisy(images[11], 1), images[5].copy()]
    whole = pairs_of(*images)
    assert {(pair.first, pair.second) for pair in whole} == {(3, 20), (11, 21), (5, 22)}
    monkeypatch.setattr(duplicates, "BLOCK", 6)
    found = pairs_of(*images)
    assert [(pair.first, pair.second, pair.exact) for pair in found] == [(p.first, p.second, p.exact) for p in whole]
    np.testing.assert_allclose([pair.correlation for pair in found], [pair.correlation for pair in whole], atol=1e-5)


def test_findings_across_within_and_under_two_labels() -> None:
    cases = [
        Case("a", "p1", "a.png", (0,), "train"),
        Case("b", "p2", "b.png", (1,), "test"),
        Case("c", "p3", "c.png", (0,), "val"),
        Case("d", "p4", "d.png", (0,), "train"),
        Case("e", "p4", "e.png", (0,), "train"),
    ]
    pairs = [
        DuplicatePair(0, 1, 1.0, exact=True),
        DuplicatePair(0, 2, 0.995),
        DuplicatePair(0, 3, 0.992, mirrored=True),
        DuplicatePair(3, 4, 0.999),
    ]
    found = {one.name: one for one in duplicate_findings(cases, pairs)}
    assert {name: one.severity for name, one in found.items()} == {
        "exact_duplicates": "refuse",
        "near_duplicates": "refuse",
        "near_duplicates_within": "note",
        "label_conflict": "refuse",
    }
    assert "1 of 1 test, 1 of 1 val, 1 of 3 train images have a near-duplicate" in found["near_duplicates"].text
    assert "a.png (train) and b.png (test)" in found["label_conflict"].text
    assert "a.png (train) and mirrored d.png (train)" in found["near_duplicates_within"].text
    assert "e.png" not in found["near_duplicates_within"].text  # two images of one patient


def test_a_sound_set_has_no_pair(tmp_path: Path) -> None:
    cases = write_set(tmp_path)
    facts = read_facts(cases, tmp_path)
    assert find_duplicates({row: one.thumbnail for row, one in enumerate(facts)}, str) == []


def test_of_breastmnist_42_test_images_leak(study) -> None:
    official = study(labels=["normal_or_benign", "malignant"])
    cases = read_manifest(MANIFESTS / "breastmnist.csv", official)
    facts = read_facts(cases, real("breastmnist"))
    pairs = find_duplicates({row: one.thumbnail for row, one in enumerate(facts)}, lambda row: facts[row].digest)
    assert count_leaked(cases, pairs) == {"train": 73, "val": 25, "test": 42}
    assert [sorted(cases[row].image for row in (pair.first, pair.second)) for pair in pairs if pair.exact] == [
        ["breastmnist.npz#test_images/76", "breastmnist.npz#train_images/115"]
    ]


def test_hippocampus_has_no_copy(study) -> None:
    cases = read_manifest(MANIFESTS / "hippocampus.csv", study(labels=["small", "large"]))
    facts = read_facts(cases, real("hippocampus"))
    assert find_duplicates({row: one.thumbnail for row, one in enumerate(facts)}, lambda row: facts[row].digest) == []


def test_busi_has_one_picture_under_two_labels_which_its_manifest_leaves_out(study) -> None:
    names = ["malignant/malignant (145).png", "benign/benign (433).png", "benign/benign (1).png"]
    cases = [Case(name, name, name, (int(name[0] == "m"),), "train") for name in names]
    facts = read_facts(cases, real("busi"))
    (pair,) = find_duplicates({row: one.thumbnail for row, one in enumerate(facts)}, lambda row: facts[row].digest)
    assert (pair.first, pair.second, pair.exact) == (0, 1, True)
    kept = {
        case.image for case in read_manifest(MANIFESTS / "busi.csv", study(labels=["benign_or_normal", "malignant"]))
    }
    assert len(kept) == 778
    assert not kept & set(names[:2])

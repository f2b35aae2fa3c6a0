"""Pairs of duplicates at the limits: correlations made to measure, chains, many copies, 49 and 50 images, volumes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import Case
from medopt.manifest import duplicates
from medopt.manifest.duplicates import (
    DuplicatePair,
    copies_of,
    count_leaked,
    duplicate_findings,
    find_duplicates,
    label_conflicts,
    notable_pairs,
    thumbnail,
)

Image = NDArray[np.float32]


def directions(count: int, shape: tuple[int, ...] = (32, 32), seed: int = 0) -> list[NDArray[np.float64]]:
    """Images of mean 0 and length 1 whose products with each other are 0."""
    size = int(np.prod(shape))
    random = np.random.default_rng(seed).normal(size=(size, count))
    basis, _ = np.linalg.qr(np.column_stack([np.ones(size), random]))
    return [basis[:, at].reshape(shape) for at in range(1, count + 1)]


def correlated(correlation: float, shape: tuple[int, ...] = (32, 32)) -> tuple[Image, Image]:
    """Two images with this correlation."""
    first, other = directions(2, shape)
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    return (100 + 50 * first).astype(np.float32), (7 + 90 * second).astype(np.float32)


def found(*images: Image, digest: str = "") -> list[tuple[int, int, bool, bool]]:
    pairs = find_duplicates(dict(enumerate(images)), lambda index: digest or str(index))
    return [(pair.first, pair.second, pair.mirrored, pair.exact) for pair in pairs]


@pytest.mark.parametrize("shape", [(32, 32), (16, 16, 16)])
def test_near_begins_at_99_hundredths_and_exact_at_9999(shape: tuple[int, ...]) -> None:
    assert found(*correlated(0.9895, shape)) == []
    assert found(*correlated(0.9905, shape)) == [(0, 1, False, False)]
    assert found(*correlated(0.9998, shape), digest="same") == [(0, 1, False, False)]
    assert found(*correlated(0.99995, shape), digest="same") == [(0, 1, False, True)]
    assert found(*correlated(0.99995, shape)) == [(0, 1, False, False)]  # alike, and other pixels
    (pair,) = find_duplicates(dict(enumerate(correlated(0.995, shape))), str)
    assert pair.correlation == pytest.approx(0.995, abs=1e-5)
    (pair,) = find_duplicates(dict(enumerate(correlated(1.0, shape))), str)
    assert 0.9999 < pair.correlation <= 1


def test_pixels_are_hashed_only_where_thumbnails_are_equal_and_once() -> None:
    one, near = correlated(0.995)
    asked: list[int] = []

    def digest(index: int) -> str:
        asked.append(index)
        return "same"

    pairs = find_duplicates({3: one, 5: near, 7: one, 9: one, 11: one[:, ::-1].copy()}, digest)
    assert sorted(asked) == [3, 7, 9]
    assert [(pair.first, pair.second) for pair in pairs if pair.exact] == [(3, 7), (3, 9), (7, 9)]
    assert {(pair.first, pair.second) for pair in pairs if pair.mirrored} == {(3, 11), (5, 11), (7, 11), (9, 11)}
    assert not any(pair.exact for pair in pairs if pair.mirrored)


def test_a_chain_is_its_links_alone() -> None:
    """Neighbours are 6 degrees apart (.9945), the next but one 12 (.978)."""
    first, second = directions(2)
    chain = [np.cos(np.radians(6 * at)) * first + np.sin(np.radians(6 * at)) * second for at in range(5)]
    images = [(10 * image).astype(np.float32) for image in chain]
    assert {pair[:2] for pair in found(*images)} == {(0, 1), (1, 2), (2, 3), (3, 4)}
    cases = [Case(f"c{at}", f"p{at}", f"{at}.png", (0,), "train" if at < 3 else "test") for at in range(5)]
    pairs = find_duplicates(dict(enumerate(images)), str)
    assert count_leaked(cases, pairs) == {"train": 1, "val": 0, "test": 1}


def test_all_pairs_of_64_checkerboards_also_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    board = np.kron((np.indices((8, 8)).sum(0) % 2), np.ones((4, 4))).astype(np.float32)
    expected = {(first, second, False, True) for first, second in combinations(range(64), 2)}
    for block in (2048, 10, 64, 63):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        pairs = found(*[board] * 64, digest="same")
        assert len(pairs) == 2016
        assert set(pairs) == expected


def test_what_all_images_share_counts_from_50_images_on() -> None:
    random, (anatomy, *own) = np.random.default_rng(1), directions(51)
    images = [(100 * anatomy + 5 * one + 0 * random.normal()).astype(np.float32) for one in own]
    assert len(found(*images[:49])) == 49 * 48 / 2
    assert found(*images[:50]) == []
    copy = images[3] + np.float32(0.05) * own[7].astype(np.float32)
    assert found(*images[:49], copy) == [(3, 49, False, False)]
    others = images[:50]
    assert copies_of(others[:1], others[1:]) == {0}  # few images: what they share is not known
    assert copies_of(others, [copy]) == {3}


def test_more_pairs_than_a_study_can_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert duplicates.MAX_PAIRS == 1_000_000
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    one, _ = correlated(0.5)
    assert len(found(*[one] * 5)) == 10
    with pytest.raises(DataError, match="Over 10 pairs of images show the same"):
        found(*[one] * 6)


def test_images_and_volumes_are_compared_each_with_their_own() -> None:
    flat, near = correlated(0.995)
    solid, like = correlated(0.995, (16, 16, 16))
    assert {pair[:2] for pair in found(flat, solid, near, like)} == {(0, 2), (1, 3)}
    assert found(flat, solid) == []
    assert copies_of([flat, solid, like], [near]) == {0}
    assert copies_of([flat, solid, like], [solid[..., ::-1].copy()]) == {1, 2}
    assert copies_of([flat], []) == set()
    assert copies_of([], [flat]) == set()
    assert copies_of([flat, correlated(0.2)[1]], [flat]) == {0}


def test_nearly_constant_images_are_like_nothing() -> None:
    grain = directions(1)[0]
    for strength, alike in ((1e-6, False), (1e-2, True)):
        images = [(1000 * (1 + strength * grain)).astype(np.float32)] * 2
        assert bool(found(*images)) is alike


def test_an_area_is_averaged_by_hand() -> None:
    """Five columns to two: the third is shared by half."""
    row = np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    small = duplicates._resized(np.tile(row, (3, 1)), (3, 2))
    np.testing.assert_allclose(small, [[(1 + 2 + 1.5) / 2.5, (1.5 + 4 + 5) / 2.5]] * 3, rtol=1e-6)
    block = thumbnail(np.arange(64 * 32, dtype=np.float32).reshape(1, 64, 32))
    assert block[0, 0] == (0 + 32) / 2
    assert (
        thumbnail(np.stack([np.zeros((4, 4), np.float32), np.full((4, 4), 3, np.float32)])).tolist() == [[1.5] * 4] * 4
    )
    assert thumbnail(np.zeros((1, 33, 31), np.float32)).shape == (32, 31)
    assert thumbnail(np.zeros((1, 17, 16, 15), np.float32)).shape == (16, 16, 15)


CASES = [
    Case("a", "p1", "a.png", (1, 0, 1), "train"),
    Case("b", "p2", "b.png", (1, 0, 1), "train"),
    Case("c", "p3", "c.png", (1, 1, 1), "val"),
    Case("d", "p3", "d.png", (1, 0, 1), "val"),
    Case("e", "p1", "e.png", (0, 0, 0), "test"),
]


def test_of_several_labels_one_that_differs_is_a_conflict() -> None:
    pairs = [
        DuplicatePair(0, 1, 1.0, exact=True),
        DuplicatePair(1, 2, 1.0, exact=True),
        DuplicatePair(2, 3, 0.995),
        DuplicatePair(0, 4, 0.995),
    ]
    assert label_conflicts(CASES, pairs) == {1, 2}
    assert notable_pairs(CASES, pairs) == [pairs[0], pairs[1], pairs[3]]  # one patient in one split is to be expected
    assert notable_pairs(CASES, [DuplicatePair(2, 3, 1.0, exact=True)]) == [DuplicatePair(2, 3, 1.0, exact=True)]
    assert count_leaked(CASES, pairs) == {"train": 2, "val": 1, "test": 1}
    texts = {finding.name: finding.text for finding in duplicate_findings(CASES, pairs)}
    assert list(texts) == [
        *("exact_duplicates", "exact_duplicates_within", "near_duplicates", "label_conflict", "near_label_conflict"),
    ]
    assert texts["exact_duplicates"].startswith("1 of 2 val, 1 of 2 train images have the same pixels in another split")
    assert texts["near_duplicates"].startswith("1 of 1 test, 1 of 2 val, 2 of 2 train images have a near-duplicate")
    assert "that are the same pixels: 1, such as a.png (train) and b.png (train)." in texts["exact_duplicates_within"]
    assert "and two labels: 1, such as b.png (train) and c.png (val). One" in texts["label_conflict"]
    assert texts["near_label_conflict"].endswith(
        "2, such as c.png (val) and d.png (val); a.png (train) and e.png (test)."
    )


def test_of_many_pairs_four_are_named() -> None:
    cases = [Case(f"{at}", f"p{at}", f"{at}.png", (0,), "train") for at in range(7)]
    for count, ending in ((4, "4.png (train)."), (5, "4.png (train); and 1 more."), (6, "and 2 more.")):
        pairs = [DuplicatePair(0, at, 1.0, exact=True) for at in range(1, count + 1)]
        (finding,) = duplicate_findings(cases, pairs)
        assert finding.severity == "note"
        assert finding.text.endswith(ending)


def test_no_correlation_is_above_one_however_products_round() -> None:
    random = np.random.default_rng(2)
    images = [random.normal(size=(32, 32)).astype(np.float32) for _ in range(40)]
    stack = duplicates._standardized(np.stack(images))
    assert (stack @ stack.T).diagonal().max() > 1  # else this shows nothing
    pairs = find_duplicates(dict(enumerate([*images, *images])), str)
    assert len(pairs) == 40
    assert max(pair.correlation for pair in pairs) == 1

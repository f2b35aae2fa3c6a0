"""The same picture twice: exactly (equal pixels) and nearly (equal thumbnails), over all pairs of images.

A pair counts as near-duplicate where its thumbnails correlate above `ALIKE` (.99) and, in sets of `ENOUGH` images or
more, still above .95 when the mean thumbnail is taken from both. The second rule is for radiographs, which all look
alike. Measured: in BreastMNIST and BUSI the pairs above .99 correlate by .96 or more without the mean; the most similar
radiographs of two drawn patients reach .988, and .95 without the mean; those of two brains .95. A copy that was
cropped, turned by 90 degrees or padded otherwise is not found; one mirrored left to right is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import SPLITS, Case, FloatArray, batches
from medopt.manifest.check import Finding, shown_name

SIDE_2D, SIDE_3D = 32, 16
ALIKE, THE_SAME = 0.99, 0.9999
APART = 5.0  # without the mean, a correlation may be lower: this many times as far from 1
ENOUGH = 50  # images; the mean of fewer is not what they have in common
BLOCK = 2048  # images a side of one matrix product
MOST_PAIRS = 1_000_000


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images, by their indices (`first` < `second`), that show the same. `exact`: their pixels are equal."""

    first: int
    second: int
    correlation: float
    mirrored: bool = False
    exact: bool = False


def thumbnail(array: FloatArray) -> FloatArray:
    """(C, H, W) to at most (32, 32), (C, D, H, W) to at most (16, 16, 16): channels and areas averaged.

    An axis that is shorter stays as it is.
    """
    most = SIDE_2D if array.ndim == 3 else SIDE_3D
    grey = array[0] if array.shape[0] == 1 else array.mean(0, dtype=np.float32)
    return _resized(grey, tuple(min(most, side) for side in grey.shape))


def _resized(array: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Average over areas, axis by axis; the first ones shrink before the last are touched."""
    for axis, count in enumerate(shape):
        before, *rest = array.shape[axis:]
        if before != count and before % count == 0:
            array = array.reshape(*array.shape[:axis], count, before // count, *rest).mean(axis + 1)
        elif before != count:
            array = np.moveaxis(np.tensordot(_areas(before, count), array, (1, axis)), 0, axis)
    return np.ascontiguousarray(array, np.float32)


@lru_cache(maxsize=256)
def _areas(before: int, after: int) -> FloatArray:
    """(after, before): how much of each of `before` pixels lies in each of `after` equal parts."""
    edges, at = np.linspace(0, before, after + 1), np.arange(before)
    shared = np.clip(np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at), 0, None)
    return np.asarray(shared / shared.sum(1, keepdims=True), np.float32)


def find_pairs(thumbnails: Mapping[int, FloatArray], digest: Callable[[int], str], alike: float = ALIKE) -> list[Pair]:
    """All pairs of duplicates among thumbnails, images and volumes apart, the most alike first.

    `digest` gives the hash of an image's pixels; it is asked only for images whose thumbnails are the same.
    Raises DataError where there are over a million pairs.
    """
    known: dict[int, str] = {}
    pairs: list[Pair] = []
    for dims in (2, 3):
        indices = [index for index, one in thumbnails.items() if one.ndim == dims]
        if len(indices) < 2:
            continue
        for pair in _alike([thumbnails[index] for index in indices], alike):
            found = replace(pair, first=indices[pair.first], second=indices[pair.second])
            if found.correlation > THE_SAME and not found.mirrored:
                for index in (found.first, found.second):
                    known[index] = known.get(index) or digest(index)
                found = replace(found, exact=known[found.first] == known[found.second])
            pairs.append(found)
            if len(pairs) > MOST_PAIRS:
                raise DataError(f"Over {MOST_PAIRS} pairs of images are the same picture: the images cannot be right.")
    return sorted(pairs, key=lambda pair: (not pair.exact, -pair.correlation, pair.first, pair.second))


def _alike(thumbnails: Sequence[FloatArray], alike: float) -> Iterator[Pair]:
    """Pairs by blocked float32 products; a pair that is alike both ways counts as not mirrored."""
    shape = tuple(int(side) for side in np.median([one.shape for one in thumbnails], axis=0))
    stack = np.stack([_resized(one, shape) for one in thumbnails])
    plain, mirrored = _standardized(stack), _standardized(stack[..., ::-1])
    mean = plain.mean(0) if len(plain) >= ENOUGH else np.zeros(plain.shape[1], np.float32)
    for rows in batches(len(plain), BLOCK):
        for columns in batches(len(plain), BLOCK):
            if columns.start < rows.start:
                continue
            direct = _matches(plain[rows], plain[columns], mean, alike)
            turned = _matches(plain[rows], mirrored[columns], mean, alike)
            for kind, (hit, correlation) in enumerate((direct, turned)):
                new = hit & ~direct[0] if kind else hit
                for row, column in zip(*np.nonzero(new), strict=True):
                    first, second = rows.start + int(row), columns.start + int(column)
                    if first < second:
                        yield Pair(first, second, min(1.0, float(correlation[row, column])), bool(kind))


def _standardized(stack: FloatArray) -> FloatArray:
    """(N, pixels) of mean 0 and length 1; a constant image becomes 0 and is like nothing."""
    flat = stack.reshape(len(stack), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    scale = np.abs(stack).reshape(len(stack), -1).max(1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-5 * scale)


def _matches(
    left: FloatArray, right: FloatArray, mean: FloatArray, alike: float
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which rows of two sets show the same, and how they correlate: (rows, columns) each."""
    correlation = left @ right.T
    hit = correlation > alike
    if mean.any() and hit.any():
        rows, columns = np.nonzero(hit)
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = left[rows] - mean, right[columns] - mean
            apart = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        hit[rows, columns] = (apart > 1 - APART * (1 - alike)) | (correlation[rows, columns] > THE_SAME)
    return hit, correlation


def notable(cases: Sequence[Case], pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that are worth a word: not two images of a patient, in one split, that look much the same."""
    rows = ((pair, cases[pair.first], cases[pair.second]) for pair in pairs)
    return [pair for pair, a, b in rows if pair.exact or a.split != b.split or a.patient_id != b.patient_id]


def leaked(cases: Sequence[Case], pairs: Sequence[Pair]) -> dict[str, int]:
    """For each split, how many of its images have a duplicate in another split."""
    found: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        if cases[pair.first].split != cases[pair.second].split:
            for index in (pair.first, pair.second):
                found[cases[index].split].add(index)
    return {split: len(found[split]) for split in SPLITS}


def conflicts(cases: Sequence[Case], pairs: Sequence[Pair]) -> set[int]:
    """The images of which the same pixels also stand under another label."""
    exact = [(pair.first, pair.second) for pair in pairs if pair.exact]
    return {index for two in exact if cases[two[0]].label != cases[two[1]].label for index in two}


def duplicate_findings(cases: Sequence[Case], pairs: Sequence[Pair]) -> list[Finding]:
    """Duplicates across splits and under two labels, which refuse, and those within a split, which are notes."""
    across = [pair for pair in pairs if cases[pair.first].split != cases[pair.second].split]
    inside = [pair for pair in notable(cases, pairs) if cases[pair.first].split == cases[pair.second].split]
    found = []
    for exact, name in ((True, "exact_duplicates"), (False, "near_duplicates")):
        kind = "the same pixels" if exact else f"a near-duplicate (correlation over {ALIKE})"
        these = "the same pixels" if exact else "near-duplicates"
        if part := [pair for pair in across if pair.exact is exact]:
            found.append(_leak(cases, name, kind, part if exact else across, part))
        if part := [pair for pair in inside if pair.exact is exact]:
            text = f"Pairs of images within a split that are {these}: {len(part)}, as {_told(cases, part)}."
            found.append(Finding(f"{name}_within", "note", text))
    return [*found, *_conflicting(cases, pairs)]


def _leak(cases: Sequence[Case], name: str, kind: str, counted: Sequence[Pair], told: Sequence[Pair]) -> Finding:
    totals = {split: sum(case.split == split for case in cases) for split in SPLITS}
    counts = leaked(cases, counted)
    shares = ", ".join(f"{counts[split]} of {totals[split]} {split}" for split in reversed(SPLITS) if counts[split])
    text = f"{shares} images have {kind} in another split, so that scores are too good: {_told(cases, told)}. "
    return Finding(name, "refuse", text + "Put all of a picture's copies into one split.")


def _conflicting(cases: Sequence[Case], pairs: Sequence[Pair]) -> Iterator[Finding]:
    differ = [pair for pair in pairs if cases[pair.first].label != cases[pair.second].label]
    if exact := [pair for pair in differ if pair.exact]:
        text = f"Pairs that are the same pixels under two labels: {len(exact)}, as {_told(cases, exact)}. "
        yield Finding("label_conflict", "refuse", f"{text}One label is wrong: correct it, or drop both.")
    if near := [pair for pair in differ if not pair.exact]:
        text = f"Pairs of near-duplicates under two labels: {len(near)}, as {_told(cases, near)}. Look at them."
        yield Finding("near_label_conflict", "note", text)


def _told(cases: Sequence[Case], pairs: Sequence[Pair]) -> str:
    """Some of the pairs, the most alike first."""
    shown = []
    for pair in pairs[:4]:
        one, two = cases[pair.first], cases[pair.second]
        turned = " mirrored" if pair.mirrored else ""
        shown.append(f"{shown_name(one)} ({one.split}) and{turned} {shown_name(two)} ({two.split})")
    return "; ".join(shown) + (f"; and {len(pairs) - 4} more" if len(pairs) > 4 else "")


def components(count: int, links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of `count` things under links, each in order, by their first member."""
    root = list(range(count))

    def top(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    for one, two in links:
        low, high = sorted((top(one), top(two)))
        root[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        groups[top(index)].append(index)
    return list(groups.values())

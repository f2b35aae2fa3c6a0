"""Duplicate images, exact (equal pixels) and near (similar thumbnails), over all pairs of images.

A pair is a near-duplicate where its thumbnails correlate above `MIN_CORRELATION` (.99) and, in sets of `MIN_FOR_MEAN`
images or more, still above .95 after the mean thumbnail is subtracted from both. The second rule is for radiographs,
which all look alike. Measured: in BreastMNIST and BUSI the pairs above .99 correlate by .96 or more without the mean;
the most similar radiographs of two drawn patients reach .988, and .95 without the mean; those of two brains .95. A copy
that was cropped, turned by 90 degrees or padded differently is not detected; one mirrored left to right is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import SPLITS, Case, FloatArray, batches
from medopt.manifest.findings import Finding, display_name

SIDE_2D, SIDE_3D = 32, 16
MIN_CORRELATION, EQUAL_CORRELATION = 0.99, 0.9999
RESIDUAL_FACTOR = 5.0  # without the mean, a correlation may be this many times as far from 1
MIN_FOR_MEAN = 50  # images; the mean of fewer is not what they have in common
BLOCK = 2048  # images along each side of one matrix product
MAX_PAIRS = 1_000_000


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that show the same, by index (`first` < `second`); `exact` where their pixels are equal."""

    first: int
    second: int
    correlation: float
    mirrored: bool = False
    exact: bool = False


def thumbnail(array: FloatArray) -> FloatArray:
    """(C, H, W) to at most (32, 32), (C, D, H, W) to at most (16, 16, 16), by averaging channels and areas.

    A shorter axis keeps its length.

    >>> thumbnail(np.zeros((1, 480, 20), np.float32)).shape
    (32, 20)
    """
    max_side = SIDE_2D if array.ndim == 3 else SIDE_3D
    grey = array[0] if array.shape[0] == 1 else array.mean(0, dtype=np.float32)
    return _resized(grey, tuple(min(max_side, side) for side in grey.shape))


def _resized(array: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Average over areas, one axis after the other."""
    for axis, count in enumerate(shape):
        before, *rest = array.shape[axis:]
        if before != count and before % count == 0:
            array = array.reshape(*array.shape[:axis], count, before // count, *rest).mean(axis + 1)
        elif before != count:
            array = np.moveaxis(np.tensordot(_area_weights(before, count), array, (1, axis)), 0, axis)
    return np.ascontiguousarray(array, np.float32)


@lru_cache(maxsize=256)
def _area_weights(before: int, after: int) -> FloatArray:
    """(after, before): how much of each of `before` pixels lies in each of `after` equal parts."""
    edges, pixel = np.linspace(0, before, after + 1), np.arange(before)
    shared = np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
    return np.asarray(shared / shared.sum(1, keepdims=True), np.float32)


def find_duplicates(
    thumbnails: Mapping[int, FloatArray], digest: Callable[[int], str], min_correlation: float = MIN_CORRELATION
) -> list[DuplicatePair]:
    """All pairs of duplicates among thumbnails, the exact ones first, then by correlation.

    Images and volumes are compared separately. `digest` gives the hash of an image's pixels; it is called only for
    images with equal thumbnails. Raises DataError where there are more than a million pairs.
    """
    digests: dict[int, str] = {}
    pairs: list[DuplicatePair] = []
    for dims in (2, 3):
        indices = [index for index, array in thumbnails.items() if array.ndim == dims]
        if len(indices) < 2:
            continue
        for pair in _similar_pairs([thumbnails[index] for index in indices], min_correlation):
            first, second = indices[pair.first], indices[pair.second]
            exact = False
            if pair.correlation > EQUAL_CORRELATION and not pair.mirrored:
                for index in (first, second):
                    digests[index] = digests.get(index) or digest(index)
                exact = digests[first] == digests[second]
            pairs.append(replace(pair, first=first, second=second, exact=exact))
            if len(pairs) > MAX_PAIRS:
                raise DataError(f"Over {MAX_PAIRS} pairs of images show the same: these are not images of a study.")
    return sorted(pairs, key=_order)


def find_case_duplicates(
    columns: Sequence[Mapping[int, FloatArray]],
    digest: Callable[[int, int], str],
    min_correlation: float = MIN_CORRELATION,
) -> list[DuplicatePair]:
    """All pairs of cases that show the same in one of their images, as `find_duplicates`.

    `columns` holds for each place in a case (T1, T2, ...) the thumbnails by case; images of one place are compared.
    `digest` gives the hash of the pixels of an image, by case and place.
    """
    found: dict[tuple[int, int], DuplicatePair] = {}
    for place, thumbnails in enumerate(columns):
        of_place = partial(lambda place, index: digest(index, place), place)
        for pair in find_duplicates(thumbnails, of_place, min_correlation):
            known = found.setdefault((pair.first, pair.second), pair)
            if (pair.exact, pair.correlation) > (known.exact, known.correlation):
                found[pair.first, pair.second] = pair
    return sorted(found.values(), key=_order)


def _order(pair: DuplicatePair) -> tuple[bool, float, int, int]:
    return (not pair.exact, -pair.correlation, pair.first, pair.second)


def _similar_pairs(thumbnails: Sequence[FloatArray], min_correlation: float) -> Iterator[DuplicatePair]:
    """Pairs by float32 products of blocks; a pair that is similar both ways counts as not mirrored."""
    shape = tuple(int(side) for side in np.median([array.shape for array in thumbnails], axis=0))
    stack = np.stack([_resized(array, shape) for array in thumbnails])
    plain, mirrored = _standardized(stack), _standardized(stack[..., ::-1])
    mean = plain.mean(0) if len(plain) >= MIN_FOR_MEAN else np.zeros(plain.shape[1], np.float32)
    for rows in batches(len(plain), BLOCK):
        for columns in batches(len(plain), BLOCK):
            if columns.start < rows.start:
                continue
            direct = _matches(plain[rows], plain[columns], mean, min_correlation)
            turned = _matches(plain[rows], mirrored[columns], mean, min_correlation)
            for is_mirrored, (hit, correlation) in ((False, direct), (True, turned)):
                new = hit & ~direct[0] if is_mirrored else hit
                for row, column in zip(*np.nonzero(new), strict=True):
                    first, second = rows.start + int(row), columns.start + int(column)
                    if first < second:
                        yield DuplicatePair(first, second, min(1.0, float(correlation[row, column])), is_mirrored)


def _standardized(stack: FloatArray) -> FloatArray:
    """(N, pixels) of mean 0 and length 1; a constant image becomes 0, which is similar to nothing."""
    flat = stack.reshape(len(stack), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    scale = np.abs(stack).reshape(len(stack), -1).max(1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-5 * scale)


def _matches(
    left: FloatArray, right: FloatArray, mean: FloatArray, min_correlation: float
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which rows of two sets are similar, and their correlation: (rows, columns) each."""
    correlation = left @ right.T
    hit = correlation > min_correlation
    if mean.any() and hit.any():
        rows, columns = np.nonzero(hit)
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = left[rows] - mean, right[columns] - mean
            residual = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        hit[rows, columns] = (residual > 1 - RESIDUAL_FACTOR * (1 - min_correlation)) | (
            correlation[rows, columns] > EQUAL_CORRELATION
        )
    return hit, correlation


def copies_of(images: Sequence[FloatArray], others: Sequence[FloatArray]) -> set[int]:
    """Which of the thumbnails `images` show the same as one of `others`, or its mirror image, by index.

    Images and volumes are compared separately.
    """
    found: set[int] = set()
    for dims in (2, 3):
        rows = [row for row, array in enumerate(images) if array.ndim == dims]
        known = [array for array in others if array.ndim == dims]
        if not rows or not known:
            continue
        shape = tuple(int(side) for side in np.median([array.shape for array in known], axis=0))
        own = _standardized(np.stack([_resized(images[row], shape) for row in rows]))
        stack = np.stack([_resized(array, shape) for array in known])
        mean = own.mean(0) if len(own) >= MIN_FOR_MEAN else np.zeros(own.shape[1], np.float32)
        for other in (_standardized(stack), _standardized(stack[..., ::-1])):
            for part in batches(len(own), BLOCK):
                for block in batches(len(other), BLOCK):
                    hit, _ = _matches(own[part], other[block], mean, MIN_CORRELATION)
                    found |= {rows[part.start + int(row)] for row in np.flatnonzero(hit.any(1))}
    return found


def notable_pairs(cases: Sequence[Case], pairs: Sequence[DuplicatePair]) -> list[DuplicatePair]:
    """The pairs without near-duplicates of one patient in one split, which are to be expected."""
    rows = ((pair, cases[pair.first], cases[pair.second]) for pair in pairs)
    return [pair for pair, a, b in rows if pair.exact or a.split != b.split or a.patient_id != b.patient_id]


def count_leaked(cases: Sequence[Case], pairs: Sequence[DuplicatePair]) -> dict[str, int]:
    """For each split, how many of its images have a duplicate in another split."""
    leaked: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        if cases[pair.first].split != cases[pair.second].split:
            for index in (pair.first, pair.second):
                leaked[cases[index].split].add(index)
    return {split: len(leaked[split]) for split in SPLITS}


def label_conflicts(cases: Sequence[Case], pairs: Sequence[DuplicatePair]) -> set[int]:
    """The images whose pixels also occur with another label."""
    exact = [(pair.first, pair.second) for pair in pairs if pair.exact]
    return {index for pair in exact if labels_differ(cases[pair[0]], cases[pair[1]]) for index in pair}


def labels_differ(first: Case, second: Case) -> bool:
    """Whether a label that is known of both differs."""
    return any(one != two and None not in (one, two) for one, two in zip(first.label, second.label, strict=True))


def duplicate_findings(cases: Sequence[Case], pairs: Sequence[DuplicatePair]) -> list[Finding]:
    """Findings on duplicates: refused across splits and with two labels, notes within a split."""
    across = [pair for pair in pairs if cases[pair.first].split != cases[pair.second].split]
    inside = [pair for pair in notable_pairs(cases, pairs) if cases[pair.first].split == cases[pair.second].split]
    findings = []
    for exact, name in ((True, "exact_duplicates"), (False, "near_duplicates")):
        copy = "the same pixels" if exact else f"a near-duplicate (correlation over {MIN_CORRELATION})"
        copies = "the same pixels" if exact else "near-duplicates"
        if part := [pair for pair in across if pair.exact is exact]:
            findings.append(_leak_finding(cases, name, copy, part if exact else across, part))
        if part := [pair for pair in inside if pair.exact is exact]:
            text = f"Pairs of images within a split that are {copies}: {len(part)}, such as {_pair_texts(cases, part)}."
            findings.append(Finding(f"{name}_within", "note", text))
    return [*findings, *_conflict_findings(cases, pairs)]


def _leak_finding(
    cases: Sequence[Case],
    name: str,
    copy: str,
    counted: Sequence[DuplicatePair],
    examples: Sequence[DuplicatePair],
) -> Finding:
    totals = {split: sum(case.split == split for case in cases) for split in SPLITS}
    counts = count_leaked(cases, counted)
    shares = ", ".join(f"{counts[split]} of {totals[split]} {split}" for split in reversed(SPLITS) if counts[split])
    text = f"{shares} images have {copy} in another split, so scores are too good: {_pair_texts(cases, examples)}. "
    return Finding(name, "refuse", text + "Put all copies of an image into one split.")


def _conflict_findings(cases: Sequence[Case], pairs: Sequence[DuplicatePair]) -> Iterator[Finding]:
    differ = [pair for pair in pairs if labels_differ(cases[pair.first], cases[pair.second])]
    if exact := [pair for pair in differ if pair.exact]:
        text = f"Pairs with the same pixels and two labels: {len(exact)}, such as {_pair_texts(cases, exact)}. "
        yield Finding("label_conflict", "refuse", f"{text}One label is wrong: correct it, or drop both.")
    if near := [pair for pair in differ if not pair.exact]:
        text = f"Pairs of near-duplicates with two labels: {len(near)}, such as {_pair_texts(cases, near)}."
        yield Finding("near_label_conflict", "note", text)


def _pair_texts(cases: Sequence[Case], pairs: Sequence[DuplicatePair]) -> str:
    """The first of the pairs in words."""
    texts = []
    for pair in pairs[:4]:
        first, second = cases[pair.first], cases[pair.second]
        mirrored = " mirrored" if pair.mirrored else ""
        texts.append(f"{display_name(first)} ({first.split}) and{mirrored} {display_name(second)} ({second.split})")
    return "; ".join(texts) + (f"; and {len(pairs) - 4} more" if len(pairs) > 4 else "")

"""Whole numbers in asked shares, and parts that hold these shares of images, whatever images a patient has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

TOLERANCE = 0.02
"""Shares of images that are off by less stay as they were drawn."""
WARNED = 0.03
"""Shares of images that are off by more are a warning."""
_HEAVY = 4
"""A patient with more than so many times the median number of images is far larger than others."""
_MAX_MOVES = 1000


def quota(count: int, part: NDArray[np.float64]) -> Ints:
    """`count` in these shares as whole numbers (S,), at least 1 where the share is not 0 and the count allows it."""
    ideal = count * part
    minimum = ((part > 0) & (count >= (part > 0).sum())).astype(np.int64)
    quota: Ints = np.maximum(np.floor(ideal).astype(np.int64), minimum)
    while quota.sum() != count:
        step = int(np.sign(count - quota.sum()))
        off = np.where(quota + step >= minimum, step * (ideal - quota), -np.inf)
        quota[int(np.argmax(off))] += step
    return quota


def proportional(count: int, target: NDArray[np.float64], part: NDArray[np.float64]) -> Ints:
    """`count` as whole numbers (S,) in the proportions of a target, which may have another sum."""
    total = target.sum()
    if total == count:
        return target.astype(np.int64)
    weight = target / total if total else part
    need: Ints = np.floor(count * weight).astype(np.int64)
    rest = np.argsort(need - count * weight, kind="stable")[: count - need.sum()]
    need[rest] += 1
    return need


def evenly(need: Ints, rng: np.random.Generator) -> Ints:
    """Numbers of parts, each as often as needed, evenly mixed; the start is drawn."""
    if not need.sum():
        return np.empty(0, np.int64)
    position = np.concatenate([(np.arange(count) + 0.5) / count if count else np.empty(0) for count in need])
    mixed = np.repeat(np.arange(len(need)), need)[np.argsort(position, kind="stable")]
    return np.roll(mixed, int(rng.integers(len(mixed))))


def is_balanced(chosen: Ints, size: Ints, part: NDArray[np.float64]) -> bool:
    """Whether parts (G,) of groups of these sizes (G,) hold about the shares (S,) of all rows, or cannot do better."""
    if not len(size) or (size == size[0]).all():
        return True  # shares of patients are shares of images
    images = np.bincount(chosen, weights=size, minlength=len(part))
    return bool(np.abs(images / size.sum() - part).max() <= TOLERANCE)


def oversized(size: Ints, part: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Groups (G,) that fill one of the smaller parts alone: they belong into the largest. Equal parts have none."""
    smallest = part[part > 0].min()
    if part.max() < 1.5 * smallest:
        return np.zeros(len(size), bool)
    return np.asarray((size > smallest * size.sum()) & (size > 2 * np.median(size)))


def move_groups(chosen: Ints, count: Ints, size: Ints, part: NDArray[np.float64], fixed: NDArray[np.bool_]) -> None:
    """Move single groups, in place, while images and labels of the parts come closer to the shares.

    `count` (G, L) are the rows of each label in each group; groups that are `fixed` stay, and no part loses a label.
    The patients of each label stay as they were dealt to within 2, unless some patients are far larger than others.
    """
    has = count > 0
    heavy = bool(size.max() > _HEAVY * np.median(size))
    rows = np.column_stack([count, size]).astype(np.float64)
    total, patients = rows.sum(0), has.sum(0) * part[:, None]
    weight = np.append(np.full(count.shape[1], 1 / count.shape[1]), 1.0) / np.maximum(total, 1)
    away = np.stack([rows[chosen == at].sum(0) for at in range(len(part))]) - part[:, None] * total
    present = np.stack([has[chosen == at].sum(0) for at in range(len(part))])
    cost = (rows**2 * weight).sum(1)
    everyone = np.arange(len(size))
    for _ in range(_MAX_MOVES):
        slope = (rows * weight) @ away.T
        change = slope - slope[everyone, chosen][:, None] + cost[:, None]  # half of the change of squared deviations
        stays = fixed | ((present[chosen] <= 1) & has).any(1)
        if not heavy:
            stays |= ((present - 1 - patients <= -2)[chosen] & has).any(1)
            change[has.astype(int) @ (present + 1 - patients >= 2).T.astype(int) > 0] = np.inf
        change[stays] = np.inf
        change[:, part <= 0] = np.inf
        change[everyone, chosen] = np.inf
        group, target = np.unravel_index(int(change.argmin()), change.shape)
        if change[group, target] >= -1e-9:
            return
        for at, sign in ((target, 1), (chosen[group], -1)):
            away[at] += sign * rows[group]
            present[at] += sign * has[group]
        chosen[group] = target


def real_shares(
    split: NDArray[np.str_], names: Sequence[str], target_shares: Sequence[float], size: Ints
) -> tuple[str, tuple[str, ...]]:
    """What share of the images (N,) is in each part, where it is not what was asked; and a warning where it is far off.

    Patients that all have the same number of images, `size` (G,), are off only because there are few of them.

    >>> split = np.array(["train"] * 80 + ["val"] * 10 + ["test"] * 10)
    >>> real_shares(split, ["train", "val", "test"], [0.6, 0.2, 0.2], np.array([80, 10, 10]))[0]
    '; of the images 0.8/0.1/0.1'
    """
    share = np.array([(split == name).mean() for name in names])
    off = np.abs(share - np.asarray(target_shares) / sum(target_shares))
    if off.max() <= 0.005:
        return "", ()
    text = "/".join(f"{value:.3g}" for value in share)
    warning = (
        f"The splits hold {text} of the images ({', '.join(names)}), not "
        f"{'/'.join(f'{value:g}' for value in target_shares)}: patients have very different numbers of images."
    )
    warned = off.max() > WARNED + 2 / len(split) and not (size == size[0]).all()
    return f"; of the images {text}", (warning,) if warned else ()

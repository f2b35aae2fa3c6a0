"""Who trains, who validates, who tests: drawn by patient, stratified by label and site, the same for the same seed.

The draw follows iterative stratification (Sechidis et al. 2011): the rarest label is dealt out first, each next one to
where it is still wanted. Within a label, patients lie in the order of their sites and sizes and are dealt evenly, so
that each site comes close to the same shares. All of it is arrays: a million rows take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError, listed

_ATTEMPTS = 8

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Groups:
    """The patients of N rows: what is drawn together. They are in the order of their names, whatever the rows' order.

    `row` (N,) is each row's group; `has` (G, L) which labels a group has; `site` and `size` (G,) its first site in the
    order of names, and its rows.
    """

    row: Ints
    has: Bools
    site: Ints
    size: Ints

    def __len__(self) -> int:
        return len(self.size)

    def where(self, mask: Bools) -> Groups:
        """The groups at which `mask` (G,) holds; `row` is then of no use, and empty."""
        return Groups(np.empty(0, np.int64), self.has[mask], self.site[mask], self.size[mask])


def group_rows(patients: NDArray[np.str_], labels: Bools, sites: NDArray[np.str_]) -> Groups:
    """Groups of N rows from their patients (N,), labels (N, L) and sites (N,)."""
    row: Ints
    _, row, size = np.unique(patients, return_inverse=True, return_counts=True)
    _, site = np.unique(sites, return_inverse=True)
    has = np.zeros((len(size), labels.shape[1]), dtype=bool)
    for label in range(labels.shape[1]):
        has[row[labels[:, label]], label] = True
    order = np.lexsort((site, row))
    first = order[np.concatenate(([0], np.cumsum(size)[:-1]))] if len(size) else order
    return Groups(row, has, site[first], size)


def draw(groups: Groups, shares: Sequence[float], seed: int, names: Sequence[str]) -> Ints:
    """Deal the groups out to S parts in these shares: (G,) numbers of parts.

    Each part gets each label. Parts with a share of 0 get nothing. `names` are the labels' names for the refusal.
    Raises DataError where a label has fewer patients than there are parts.
    """
    part = np.asarray(shares, dtype=np.float64) / sum(shares)
    wanted = int((part > 0).sum())
    counts = groups.has.sum(axis=0)
    few = [f"{name} has {count}" for name, count in zip(names, counts.tolist(), strict=True) if count < wanted]
    if few:
        raise DataError(
            f"There are too few patients for {wanted} parts with each class in each: {listed(few, 10)}, of "
            f"{len(groups)} in all. A patient stands in one part only. Add patients, leave the class out, or ask for "
            "fewer parts (--split 0.8,0,0.2 has two)."
        )
    chosen: Ints = np.empty(0, np.int64)
    for attempt in range(_ATTEMPTS):
        chosen = _deal(groups, part, np.random.default_rng([seed, attempt]))
        if _repaired(chosen, groups.has, part > 0):
            return chosen
    present = _presence(groups.has, chosen, len(part))
    lacking = [f"{name} in {sorted(np.flatnonzero(row).tolist())}" for name, row in zip(names, present.T, strict=True)]
    raise DataError(
        f"No draw puts each class into each of {wanted} parts, because patients have several classes at once. Patients "
        f"by part, numbered from 0: {listed(lacking, 10)}. Add patients or leave a class out."
    )


def _deal(groups: Groups, part: NDArray[np.float64], rng: np.random.Generator) -> Ints:
    """One draw: label by label, the rarest first."""
    chosen = np.full(len(groups), -1, dtype=np.int64)
    bulk = np.log2(groups.size).astype(np.int64)  # patients with about as many rows lie side by side
    luck = rng.random(len(groups))
    for label in np.argsort(groups.has.sum(axis=0), kind="stable"):
        members = np.flatnonzero(groups.has[:, label])
        free = members[chosen[members] < 0]
        taken = np.bincount(chosen[members][chosen[members] >= 0], minlength=len(part))
        need = _spread(len(free), np.maximum(_quota(len(members), part) - taken, 0).astype(np.float64), part)
        lined = free[np.lexsort((luck[free], bulk[free], groups.site[free]))]
        chosen[lined] = _evenly(need, rng)
    return chosen


def _quota(count: int, part: NDArray[np.float64]) -> Ints:
    """`count` in these shares as whole numbers, one at least where the share is not 0 and the count allows it."""
    ideal = count * part
    least = ((part > 0) & (count >= (part > 0).sum())).astype(np.int64)
    quota: Ints = np.maximum(np.floor(ideal).astype(np.int64), least)
    while quota.sum() != count:
        step = int(np.sign(count - quota.sum()))
        off = np.where((part > 0) & (quota + step >= least), step * (ideal - quota), -np.inf)
        quota[int(np.argmax(off))] += step
    return quota


def _spread(count: int, wish: NDArray[np.float64], part: NDArray[np.float64]) -> Ints:
    """`count` in the proportions of a wish, which may come to another sum."""
    total = wish.sum()
    if total == count:
        return wish.astype(np.int64)
    weight = wish / total if total else part
    need: Ints = np.floor(count * weight).astype(np.int64)
    rest = np.argsort(need - count * weight, kind="stable")[: count - need.sum()]
    need[rest] += 1
    return need


def _evenly(need: Ints, rng: np.random.Generator) -> Ints:
    """Part numbers, each as often as needed, as evenly mixed as can be, begun at a place that is drawn."""
    if not need.sum():
        return np.empty(0, np.int64)
    place = np.concatenate([(np.arange(count) + 0.5) / count if count else np.empty(0) for count in need])
    mixed = np.repeat(np.arange(len(need)), need)[np.argsort(place, kind="stable")]
    return np.roll(mixed, int(rng.integers(len(mixed))))


def _presence(has: Bools, chosen: Ints, parts: int) -> NDArray[Any]:
    """(S, L) groups of each label in each part."""
    return np.stack([has[chosen == part].sum(axis=0) for part in range(parts)])


def _repaired(chosen: Ints, has: Bools, wanted: Bools) -> bool:
    """Move single groups, in place, until each label is in each wanted part; whether that succeeded."""
    present = _presence(has, chosen, len(wanted))
    for _ in range(present.size):
        gaps = np.argwhere((present == 0) & wanted[:, None])
        if not len(gaps):
            return True
        part, label = gaps[0]
        movable = [
            group
            for group in np.flatnonzero(has[:, label])
            if (present[chosen[group]][has[group]] > 1).all()  # leaves no gap behind
        ]
        if not movable:
            return False
        group = max(movable, key=lambda one: int(present[chosen[one]][has[one]].min()))
        present[chosen[group]] -= has[group]
        present[part] += has[group]
        chosen[group] = part
    return not ((present == 0) & wanted[:, None]).any()

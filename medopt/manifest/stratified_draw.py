"""Patients dealt out to parts in given shares, stratified by label and site: the same for the same seed.

The draw follows iterative stratification (Sechidis et al. 2011): the rarest label is dealt out first, the next ones to
the parts that still lack them. Within a label, patients are in the order of their sites and numbers of images and are
dealt evenly, so that each site comes close to the same shares. Where patients have very different numbers of images,
some are moved until the shares of images are as asked, too (`balance`). All of it is arrays: a million rows take
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError, listed
from medopt.manifest.balance import evenly, is_balanced, move_groups, oversized, proportional, quota

_ATTEMPTS = 8

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PatientGroups:
    """The G patients of N rows, in the order of their names: the rows of a patient are drawn together.

    `row` (N,) is the group of each row, `count` (G, L) how many of its rows have each of L labels, `site` (G,) its site
    (the first by name, as a number) and `size` (G,) its number of rows.
    """

    row: Ints
    count: Ints
    site: Ints
    size: Ints

    def __len__(self) -> int:
        return len(self.size)

    @property
    def has(self) -> Bools:
        """(G, L) which labels a group has."""
        return self.count > 0

    def where(self, mask: Bools) -> PatientGroups:
        """The groups at which `mask` (G,) is true; their `row` is empty."""
        return PatientGroups(np.empty(0, np.int64), self.count[mask], self.site[mask], self.size[mask])


def group_by_patient(patients: NDArray[np.str_], labels: Bools, sites: NDArray[np.str_]) -> PatientGroups:
    """Groups of N rows by their patients (N,), with labels (N, L) and sites (N,)."""
    row: Ints
    short = np.char.encode(patients, "utf-8")  # in the same order, in a quarter of the memory
    _, row, size = np.unique(short, return_inverse=True, return_counts=True)
    _, site = np.unique(sites, return_inverse=True)
    count = np.empty((len(size), labels.shape[1]), dtype=np.int64)
    for label in range(labels.shape[1]):
        count[:, label] = np.bincount(row[labels[:, label]], minlength=len(size))
    order = np.lexsort((site, row))
    first = order[np.concatenate(([0], np.cumsum(size)[:-1]))] if len(size) else order
    return PatientGroups(row, count, site[first], size)


def draw_parts(
    groups: PatientGroups, shares: Sequence[float], seed: int, names: Sequence[str], *, by_image: bool = False
) -> Ints:
    """Deal the groups out to S parts in these shares: (G,) the number of each group's part, from 0.

    The shares are of patients; `by_image` brings those of images close to them, too. Each part gets each label; parts
    with a share of 0 get nothing. `names` are the names of the labels in errors. Raises DataError where a label has
    fewer patients than there are parts.

    >>> patients, labels = np.array(["p1", "p2", "p3", "p4"]), np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=bool)
    >>> groups = group_by_patient(patients, labels, np.array(["a"] * 4))
    >>> np.bincount(draw_parts(groups, (0.5, 0.5), 0, ["no", "yes"])).tolist()
    [2, 2]
    """
    part = np.asarray(shares, dtype=np.float64) / sum(shares)
    parts = int((part > 0).sum())
    has = groups.has
    counts = has.sum(axis=0)
    few = [f"{name} has {count}" for name, count in zip(names, counts.tolist(), strict=True) if count < parts]
    if few:
        raise DataError(
            f"There are too few patients for {parts} parts with each class in each: {listed(few, 10)}, of "
            f"{len(groups)} in all. A patient is in one part only. Add patients, leave the class out, or ask for "
            "fewer parts (--split 0.8,0,0.2 has two)."
        )
    chosen: Ints
    for attempt in range(_ATTEMPTS):
        chosen = _deal(groups, part, np.random.default_rng([seed, attempt]))
        fixed = np.zeros(len(groups), bool)
        uneven = by_image and not is_balanced(chosen, groups.size, part)
        if uneven:
            fixed = oversized(groups.size, part)
            chosen[fixed] = part.argmax()
        if _fill_gaps(chosen, has, part > 0, fixed):
            if uneven:
                move_groups(chosen, groups.count, groups.size, part, fixed)
            return chosen
    present = _presence(has, chosen, len(part))
    lacking = [f"{name} in {sorted(np.flatnonzero(row).tolist())}" for name, row in zip(names, present.T, strict=True)]
    raise DataError(
        f"No draw puts each class into each of {parts} parts, because patients have several classes at once. Patients "
        f"by part, numbered from 0: {listed(lacking, 10)}. Add patients or leave a class out."
    )


def _deal(groups: PatientGroups, part: NDArray[np.float64], rng: np.random.Generator) -> Ints:
    """One draw: label by label, the rarest first; patients without any label are dealt as if that were one, too."""
    chosen = np.full(len(groups), -1, dtype=np.int64)
    has = np.column_stack([groups.has, ~groups.has.any(axis=1)])
    bulk = np.log2(groups.size).astype(np.int64)  # patients with about as many rows are next to each other
    tie_break = rng.random(len(groups))
    for label in np.argsort(has.sum(axis=0), kind="stable"):
        members = np.flatnonzero(has[:, label])
        free = members[chosen[members] < 0]
        taken = np.bincount(chosen[members][chosen[members] >= 0], minlength=len(part))
        need = proportional(len(free), np.maximum(quota(len(members), part) - taken, 0).astype(np.float64), part)
        ordered = free[np.lexsort((tie_break[free], bulk[free], groups.site[free]))]
        chosen[ordered] = evenly(need, rng)
    return chosen


def _presence(has: Bools, chosen: Ints, parts: int) -> NDArray[Any]:
    """(S, L) number of groups of each label in each part."""
    return np.stack([has[chosen == part].sum(axis=0) for part in range(parts)])


def _fill_gaps(chosen: Ints, has: Bools, used: Bools, fixed: Bools) -> bool:
    """Move single groups, in place, until each label is in each used part (S,); False where that is not possible.

    Groups that are `fixed` (G,) move only where no other can.
    """
    present = _presence(has, chosen, len(used))
    for _ in range(present.size):
        gaps = np.argwhere((present == 0) & used[:, None])
        if not len(gaps):
            return True
        part, label = gaps[0]
        movable = [
            group
            for group in np.flatnonzero(has[:, label])
            if (present[chosen[group]][has[group]] > 1).all()  # leaves no gap where it was
        ]
        if not movable:
            return False
        movable = [index for index in movable if not fixed[index]] or movable
        group = max(movable, key=lambda index: int(present[chosen[index]][has[index]].min()))
        present[chosen[group]] -= has[group]
        present[part] += has[group]
        chosen[group] = part
    return not ((present == 0) & used[:, None]).any()

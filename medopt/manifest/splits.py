"""Who trains, who validates, who tests: drawn by patient, stratified by label and site, the same for the same seed.

The draw follows iterative stratification (Sechidis et al. 2011): the rarest label is dealt out first, each next one to
where it is still wanted. Within a label, patients lie in the order of their sites and sizes and are dealt evenly, so
that each site comes close to the same shares. All of it is arrays: a million rows take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.records import SPLITS, Case

_ATTEMPTS = 8

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PatientGroups:
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

    def where(self, mask: Bools) -> PatientGroups:
        """The groups at which `mask` (G,) holds; `row` is then of no use, and empty."""
        return PatientGroups(np.empty(0, np.int64), self.has[mask], self.site[mask], self.size[mask])


def group_rows(patients: NDArray[np.str_], labels: Bools, sites: NDArray[np.str_]) -> PatientGroups:
    """Groups of N rows from their patients (N,), labels (N, L) and sites (N,)."""
    row: Ints
    _, row, size = np.unique(patients, return_inverse=True, return_counts=True)
    _, site = np.unique(sites, return_inverse=True)
    has = np.zeros((len(size), labels.shape[1]), dtype=bool)
    for label in range(labels.shape[1]):
        has[row[labels[:, label]], label] = True
    order = np.lexsort((site, row))
    first = order[np.concatenate(([0], np.cumsum(size)[:-1]))] if len(size) else order
    return PatientGroups(row, has, site[first], size)


def draw(groups: PatientGroups, shares: Sequence[float], seed: int, names: Sequence[str]) -> Ints:
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


def _deal(groups: PatientGroups, part: NDArray[np.float64], rng: np.random.Generator) -> Ints:
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


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How to split. `fold` is the fold that tests, the next one validates; `hold_out` is a site as the rows name it."""

    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    seed: int = 0
    folds: int = 0
    fold: int = 0
    hold_out: str = ""
    resplit: bool = False
    """Draw anew although the source has splits of its own."""

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ConfigError(
                f"--split takes three shares for train, val and test that sum to 1; got {_text(self.shares)}."
            )
        if self.folds and (self.folds < 3 or not 0 <= self.fold < self.folds):
            raise ConfigError(
                f"--folds takes 3 or more, and --fold one of them counted from 0; got --folds {self.folds} --fold "
                f"{self.fold}. One fold tests, the next one validates, the others train."
            )
        if self.folds and self.hold_out:
            raise ConfigError("--folds and --hold-out exclude each other: a held-out site is the test already.")


@dataclass(frozen=True, slots=True)
class Assigned:
    """The split of each row (N,), its fold (N,) where there are folds, how it came about, and what to know of it."""

    split: NDArray[np.str_]
    fold: Ints | None
    how: str
    notes: tuple[str, ...] = ()


def assign_splits(
    patients: NDArray[np.str_],
    labels: Bools,
    sites: NDArray[np.str_],
    own: NDArray[np.str_],
    rules: SplitRules,
    names: Sequence[str],
) -> Assigned:
    """Split N rows by patient (N,), stratified by labels (N, L) and site (N,).

    `own` (N,) are the source's splits, empty texts where it has none; they are kept, and a val or test that it lacks is
    drawn out of train. Raises DataError where a class has too few patients, where the source's own splits share
    patients, and where the site to be held out is unknown; ConfigError where rules exclude each other.
    """
    groups = group_rows(patients, labels, sites)
    if not rules.resplit and len(set(own.tolist()) & set(SPLITS)) > 1:
        return _kept(groups, own, rules, names)
    if rules.hold_out:
        return _held_out(groups, sites, rules, names)
    if rules.folds:
        fold = draw(groups, (1.0,) * rules.folds, rules.seed, names)[groups.row]
        chosen = np.select([fold == rules.fold, fold == (rules.fold + 1) % rules.folds], [2, 1], 0)
        how = f"{rules.folds} folds by patient, stratified by label and site, seed {rules.seed}; "
        how += f"fold {rules.fold} tests, fold {(rules.fold + 1) % rules.folds} validates"
        return Assigned(_named(chosen), fold, how)
    chosen = draw(groups, rules.shares, rules.seed, names)
    how = f"{_text(rules.shares)} (train, val, test) by patient, stratified by label and site, seed {rules.seed}"
    return Assigned(_named(chosen[groups.row]), None, how)


def _kept(groups: PatientGroups, own: NDArray[np.str_], rules: SplitRules, names: Sequence[str]) -> Assigned:
    if rules.folds or rules.hold_out:
        raise ConfigError(
            "The source has splits of its own, and they are kept: --folds and --hold-out need --resplit, which draws "
            "anew."
        )
    found = np.array([SPLITS.index(name) if name in SPLITS else -1 for name in own.tolist()], dtype=np.int64)
    low, high = np.full(len(groups), 3), np.full(len(groups), -1)
    np.minimum.at(low, groups.row, found)
    np.maximum.at(high, groups.row, found)
    if shared := int((low < high).sum()):
        raise DataError(
            f"{shared} of {len(groups)} patients stand in more than one of the source's own splits, so that scores "
            "would be too good. Draw anew by patient: --resplit."
        )
    chosen, how = low.copy(), "the source's own splits are kept"
    lacking = [at for at in (1, 2) if not (low == at).any()]
    if lacking:
        shares = [rules.shares[at] if at in (0, *lacking) else 0.0 for at in range(3)]
        # The share of a split that is drawn is one of all the source's images that are not fixed in another.
        chosen[low == 0] = draw(groups.where(low == 0), shares, rules.seed, names)
        told = " and ".join(SPLITS[at] for at in lacking)
        how += f"; {told} drawn out of train by patient, stratified by label and site, seed {rules.seed}"
    return Assigned(_named(chosen[groups.row]), None, how)


def _held_out(groups: PatientGroups, sites: NDArray[np.str_], rules: SplitRules, names: Sequence[str]) -> Assigned:
    known = sorted(set(sites.tolist()))
    if rules.hold_out not in known:
        raise DataError(f"--hold-out {rules.hold_out!r} is no site of this source. Its sites: {listed(known, 20)}.")
    there = np.zeros(len(groups), dtype=bool)
    there[groups.row[sites == rules.hold_out]] = True
    present = groups.has[there].sum(axis=0).tolist()
    lacking = [name for name, count in zip(names, present, strict=True) if not count]
    if lacking:
        raise DataError(
            f"The site {rules.hold_out} has no case of {listed(lacking)} in {int(there.sum())} patients, so that no "
            "score could be had there. Hold out another site."
        )
    chosen = np.full(len(groups), 2)
    chosen[~there] = draw(groups.where(~there), (*rules.shares[:2], 0.0), rules.seed, names)
    both = int((sites != rules.hold_out)[there[groups.row]].sum())
    told = f"{both} rows of other sites are in the test, too: their patients were at {rules.hold_out}."
    how = f"site {rules.hold_out} held out as the test; the rest {_text(rules.shares[:2])} (train, val) by patient, "
    how += f"stratified by label and site, seed {rules.seed}"
    return Assigned(_named(chosen[groups.row]), None, how, (told,) if both else ())


def _named(chosen: Ints) -> NDArray[np.str_]:
    return np.array(SPLITS)[chosen]


def _text(shares: Sequence[float]) -> str:
    return "/".join(f"{share:g}" for share in shares)


def splits_of_folds(patients: NDArray[np.str_], own: NDArray[np.str_], folds: Ints, fold: int) -> Assigned:
    """Splits from the source's own folds (N,), -1 for rows without one.

    Where the source has a test, `fold` validates; else `fold` tests and the next one validates. Raises DataError where
    a patient stands in several folds, ConfigError for a fold that is none.
    """
    known = sorted(set(folds[folds >= 0].tolist()))
    has_test = bool((own == "test").any())
    if fold not in known or len(known) < (2 if has_test else 3):
        raise ConfigError(f"--fold {fold}: the source has the folds {', '.join(map(str, known))}. Or use --resplit.")
    after = known[(known.index(fold) + 1) % len(known)]
    tests, validates = (-2, fold) if has_test else (fold, after)
    chosen = np.select([(own == "test") | (folds == tests), folds == validates], [2, 1], 0)
    _, row = np.unique(patients, return_inverse=True)
    if len(np.unique(np.stack([row, chosen]), axis=1)[0]) > len(np.unique(row)):
        raise DataError("Patients stand in several of the source's own folds. Draw anew by patient: --resplit.")
    how = f"the source's own folds: fold {validates} validates" + ("" if has_test else f", fold {tests} tests")
    return Assigned(_named(chosen), folds, how)


_DRAW = 0  # folds belong to the data: another seed of the study trains on the very same ones


def with_folds(cases: Sequence[Case], study: Study) -> tuple[Case, ...]:
    """The cases with the splits of the study's fold: `data.fold` validates, the other folds train, test is untouched.

    Folds are stratified by label and site. Raises DataError where a label has fewer patients than there are folds.
    """
    if not study.data.folds:
        return tuple(cases)
    rows = [index for index, case in enumerate(cases) if case.split != "test"]
    patients, sites = (np.array([getattr(cases[row], name) for row in rows]) for name in ("patient_id", "site"))
    truth = np.array([cases[row].label for row in rows])
    labels = truth == 1 if study.data.task == "multilabel" else truth == np.arange(len(study.data.labels))
    groups = group_rows(patients, labels, sites)
    fold = draw(groups, (1.0,) * study.data.folds, _DRAW, study.data.labels)[groups.row]
    found = list(cases)
    for row, number in zip(rows, fold.tolist(), strict=True):
        found[row] = replace(cases[row], split="val" if number == study.data.fold else "train")
    return tuple(found)

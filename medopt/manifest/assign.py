"""The splits of a manifest by a person's rules: the source's own, shares, folds, or one site held out for the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.records import SPLITS
from medopt.manifest.splits import Bools, Groups, Ints, draw, group_rows


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


def _kept(groups: Groups, own: NDArray[np.str_], rules: SplitRules, names: Sequence[str]) -> Assigned:
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


def _held_out(groups: Groups, sites: NDArray[np.str_], rules: SplitRules, names: Sequence[str]) -> Assigned:
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

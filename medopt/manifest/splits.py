"""Splits by patient: drawn in shares or folds, with a site held out, or those of the source.

`stratified_draw` deals the patients out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.format import count_text
from medopt.core.records import SPLITS, Case, label_table
from medopt.manifest.balance import real_shares
from medopt.manifest.stratified_draw import Bools, Ints, PatientGroups, draw_parts, group_by_patient


@dataclass(frozen=True, slots=True)
class SplitRules:
    """How to split: by `shares` (train, val, test), by `folds`, or with the site `hold_out` as the test.

    Of the folds, `fold` tests and the next one validates. Raises ConfigError for values that contradict each other.
    """

    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    seed: int = 0
    folds: int = 0
    fold: int = 0
    hold_out: str = ""
    resplit: bool = False
    """Draw splits although the source has its own."""

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ConfigError(
                f"--split takes three shares for train, val and test that sum to 1; got {_shares_text(self.shares)}."
            )
        if self.folds and (self.folds < 3 or not 0 <= self.fold < self.folds):
            raise ConfigError(
                f"--folds takes 3 or more, and --fold one of them counted from 0; got --folds {self.folds} --fold "
                f"{self.fold}. One fold tests, the next one validates, the others train."
            )
        if self.folds and self.hold_out:
            raise ConfigError("--folds and --hold-out exclude each other: a held-out site is the test already.")


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """The split of each row (N,), its fold (N,) where there are folds, how they were made, and notes for the user."""

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
) -> SplitAssignment:
    """Split N rows by patient (N,), stratified by labels (N, L) and site (N,).

    `own` (N,) are the splits of the source, empty texts where it has none; they are kept, and a val or test that it
    lacks is drawn from train. `names` are the names of the labels in errors. Raises DataError where a class has too few
    patients, where the source's splits share patients, and where the site to hold out is unknown; ConfigError where
    rules contradict the source.
    """
    groups = group_by_patient(patients, labels, sites)
    if not rules.resplit and len(set(own.tolist()) & set(SPLITS)) > 1:
        return _keep_own_splits(groups, own, rules, names)
    if rules.hold_out:
        return _hold_out_site(groups, sites, rules, names)
    if rules.folds:
        fold = draw_parts(groups, (1.0,) * rules.folds, rules.seed, names, by_image=True)[groups.row]
        chosen = np.select([fold == rules.fold, fold == (rules.fold + 1) % rules.folds], [2, 1], 0)
        how = f"{rules.folds} folds by patient, stratified by label and site, seed {rules.seed}; "
        how += f"fold {rules.fold} tests, fold {(rules.fold + 1) % rules.folds} validates"
        numbers = [str(at) for at in range(rules.folds)]
        real, warning = real_shares(fold.astype(str), numbers, (round(1 / rules.folds, 3),) * rules.folds, groups.size)
        return SplitAssignment(_split_names(chosen), fold, how + real, warning)
    chosen = draw_parts(groups, rules.shares, rules.seed, names, by_image=True)
    split = _split_names(chosen[groups.row])
    real, warning = real_shares(split, SPLITS, rules.shares, groups.size)
    how = f"{_shares_text(rules.shares)} (train, val, test) by patient, stratified by label and site, seed {rules.seed}"
    return SplitAssignment(split, None, how + real, warning)


def _keep_own_splits(
    groups: PatientGroups, own: NDArray[np.str_], rules: SplitRules, names: Sequence[str]
) -> SplitAssignment:
    if rules.folds or rules.hold_out:
        raise ConfigError(
            "The source has its own splits, and they are kept: --folds and --hold-out need --resplit, which draws them "
            "again."
        )
    if none := sorted({name for name in own.tolist() if name not in SPLITS}):
        rows = int(np.isin(own, none).sum())
        raise DataError(
            f"{count_text(rows, 'row')} of a source with its own splits are in none of them ({listed(none, 5)}). Name "
            f"{', '.join(SPLITS)} for each, leave those rows out, or draw the splits again by patient: --resplit."
        )
    split = np.array([SPLITS.index(name) for name in own.tolist()], dtype=np.int64)
    low = split[np.unique(groups.row, return_index=True)[1]]  # of a patient's first row
    high = low.copy()
    np.minimum.at(low, groups.row, split)
    np.maximum.at(high, groups.row, split)
    if shared := int((low < high).sum()):
        raise DataError(
            f"{shared} of {len(groups)} patients are in more than one of the source's own splits, so scores would "
            "be too good. Draw the splits again by patient: --resplit."
        )
    chosen, how = low.copy(), "the source's own splits are kept"
    lacking = [at for at in (1, 2) if not (low == at).any()]
    if lacking:
        shares = [rules.shares[at] if at in (0, *lacking) else 0.0 for at in range(3)]
        # The share of a drawn split refers to the images that are not fixed in another split.
        free = low == 0
        chosen[free] = draw_parts(groups.where(free), shares, rules.seed, names, by_image=True)
        drawn = " and ".join(SPLITS[at] for at in lacking)
        how += f"; {drawn} drawn from train by patient, stratified by label and site, seed {rules.seed}"
        names_of_rows = _split_names(chosen[groups.row])
        used, fixed = [at for at in range(3) if shares[at]], ~free[groups.row]
        parts, asked = [SPLITS[at] for at in used], [shares[at] for at in used]
        real, warning = real_shares(names_of_rows[~fixed], parts, asked, groups.size[free])
        return SplitAssignment(names_of_rows, None, how + real, warning)
    return SplitAssignment(_split_names(chosen[groups.row]), None, how)


def _hold_out_site(
    groups: PatientGroups, sites: NDArray[np.str_], rules: SplitRules, names: Sequence[str]
) -> SplitAssignment:
    known = sorted(set(sites.tolist()))
    if rules.hold_out not in known:
        raise DataError(f"--hold-out {rules.hold_out!r} is not a site of this source. Its sites: {listed(known, 20)}.")
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
    shares = (*rules.shares[:2], 0.0)
    chosen[~there] = draw_parts(groups.where(~there), shares, rules.seed, names, by_image=True)
    both = int((sites != rules.hold_out)[there[groups.row]].sum())
    note = f"{count_text(both, 'row')} of other sites in the test, too: the patients were at {rules.hold_out}."
    how = f"site {rules.hold_out} held out as the test; the rest {_shares_text(rules.shares[:2])} (train, val) by "
    how += f"patient, stratified by label and site, seed {rules.seed}"
    split = _split_names(chosen[groups.row])
    real, warning = real_shares(split[~there[groups.row]], SPLITS[:2], rules.shares[:2], groups.size[~there])
    return SplitAssignment(split, None, how + real, (*([note] if both else []), *warning))


def _split_names(chosen: Ints) -> NDArray[np.str_]:
    return np.array(SPLITS)[chosen]


def _shares_text(shares: Sequence[float]) -> str:
    return "/".join(f"{share:g}" for share in shares)


def splits_of_folds(patients: NDArray[np.str_], own: NDArray[np.str_], folds: Ints, fold: int) -> SplitAssignment:
    """Splits from the folds of the source (N,), -1 for rows without one.

    Where the source has a test split, `fold` validates; else `fold` tests and the next one validates. Raises DataError
    where a patient is in several folds, ConfigError for a fold that the source does not have.
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
        raise DataError("Patients are in several of the source's own folds. Draw splits by patient: --resplit.")
    how = f"the source's own folds: fold {validates} validates" + ("" if has_test else f", fold {tests} tests")
    return SplitAssignment(_split_names(chosen), folds, how)


_FOLD_SEED = 0  # folds belong to the data: every seed of a study trains on the same ones


def apply_folds(cases: Sequence[Case], study: Study) -> tuple[Case, ...]:
    """The cases with the splits of the study's fold: `data.fold` validates, the other folds train, test is untouched.

    Folds are stratified by label and site. Raises DataError where a label has fewer patients than there are folds.
    """
    if not study.data.folds:
        return tuple(cases)
    rows = [index for index, case in enumerate(cases) if case.split != "test"]
    patients, sites = (np.array([getattr(cases[row], name) for row in rows]) for name in ("patient_id", "site"))
    truth = label_table([cases[row] for row in rows])
    names = study.data.labels
    labels = truth == 1 if study.data.task == "multilabel" else truth == np.arange(len(names))
    if np.isnan(truth).any():  # else whoever has no finding is known to be without it
        labels = np.hstack([labels, truth == 0])
        names = [f"{name} = {value}" for value in (1, 0) for name in names]
    groups = group_by_patient(patients, labels, sites)
    shares = (1.0,) * study.data.folds
    fold = draw_parts(groups, shares, _FOLD_SEED, names, by_image=True)[groups.row]
    in_folds = list(cases)
    for row, number in zip(rows, fold.tolist(), strict=True):
        in_folds[row] = replace(cases[row], split="val" if number == study.data.fold else "train")
    return tuple(in_folds)

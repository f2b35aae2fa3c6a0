"""What a release promises of its int8 model, observed on the test split: for all cases, each site and each subgroup.

Two promises: int8 is not worse than float by more than the gate's bounds (paired: AUC and decisions), and prediction
sets, or the interval of a number, cover their share of new patients. Where a group has fewer than `smallest` patients,
its figure is not known, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medopt.config import Gate
from medopt.core.format import format_difference, format_share
from medopt.core.records import Estimate, is_exclusive
from medopt.core.result import ByKind, Result
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.subgroups import group_columns
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.conformal import class_names, class_truth
from medopt.metrics.proportions import proportion
from medopt.metrics.selective import kept_shares
from medopt.metrics.weighted import distinct

NOT_RECORDED = "no guarantee is recorded: the release was built by an earlier version"
ALL = "all"
INTERVAL = "the number's interval"


class GuaranteeRow(Result):
    """The promises in one group of test cases; `variable` is "" in the row of all cases.

    `auc_difference` is that of int8 less float, `decision_flips` the share of decisions that int8 changes, `kept` of
    each class the share of its cases that are answered with it or left undecided. What is not known has a note.
    """

    variable: str
    group: str
    cases: int
    patients: int
    auc_difference: Estimate
    decision_flips: Estimate
    kept: tuple[Estimate, ...] = ()


class GuaranteeTable(Result):
    """The promises and what the test split showed of them, all cases first.

    `auc_bound` and `flips_bound` are the gate's; `coverage` is that of the `classes`, None where none is promised.
    """

    confidence: float
    smallest: int
    auc_bound: float
    flips_bound: float
    coverage: float | None
    classes: tuple[str, ...]
    rows: tuple[GuaranteeRow, ...]

    @property
    def promises(self) -> tuple[str, ...]:
        """In sentences."""
        int8 = (
            f"Int8 loses at most {self.auc_bound:g} of the AUC and changes at most {100 * self.flips_bound:g} % of the "
            "decisions of the float model (the gate's bounds, which it judged on validation)"
        )
        if self.coverage is None:
            return (int8,)
        share = f"Of new patients, {100 * self.coverage:g} % or more"
        if self.classes == (INTERVAL,):
            return int8, f"{share} have their number in the interval of the answer"
        return int8, f"{share} of each class are answered with it or left undecided"

    @property
    def note(self) -> str:
        """How the table is read."""
        return (
            f"Test cases; {100 * self.confidence:g} % intervals, each for itself: of many groups some look odd by "
            f"chance. Not known: fewer than {self.smallest} patients."
        )

    @property
    def heads(self) -> list[str]:
        """The titles of the columns."""
        kept = [one if one == INTERVAL else f"{one}: answered so, or undecided" for one in self.classes]
        return ["group", "cases", "patients", "AUC, int8 less float", "decisions changed by int8", *kept]

    @property
    def cells(self) -> list[list[str]]:
        """A row for each group: each figure, and whether it shows the promise."""
        return [
            [
                f"{row.variable} {row.group}".strip(),
                str(row.cases),
                str(row.patients),
                _cell(row.auc_difference, format_difference(row.auc_difference), -self.auc_bound, at_least=True),
                _cell(row.decision_flips, format_share(row.decision_flips), self.flips_bound),
                *(_covered(one, self.coverage) for one in row.kept),
            ]
            for row in self.rows
        ]


def _cell(figure: Estimate, text: str, bound: float, *, at_least: bool = False) -> str:
    """A figure with what its interval says of the bound."""
    if figure.value is None:
        return f"not known ({figure.note})"
    if figure.low is None or figure.high is None:
        return f"{text}: not shown"
    inside, outside = (
        (figure.low >= bound, figure.high < bound) if at_least else (figure.high <= bound, figure.low > bound)
    )
    return f"{text}: {'kept' if inside else 'BROKEN' if outside else 'not shown'}"


def _covered(figure: Estimate, coverage: float | None) -> str:
    """A share that is promised on average: an interval can contradict it."""
    if figure.value is None:
        return f"not known ({figure.note})"
    broken = coverage is not None and figure.high is not None and figure.high < coverage
    return format_share(figure) + (": BROKEN" if broken else "")


def guarantee_table(
    test: ByKind[CalibratedPredictions], gate: Gate, labels: Sequence[str], smallest: int, confidence: float
) -> GuaranteeTable:
    """The table of both models on the same test cases; `smallest` is the minimum number of patients of a figure."""
    before, after = test.float, test.int8
    sets, margin = after.operating_point.sets, after.margin
    classes: tuple[str, ...] = ()
    coverage = None
    if sets is not None:
        classes, coverage = tuple(class_names(labels, after.task)), sets.coverage
    elif margin is not None and after.inside is not None:
        classes, coverage = (INTERVAL,), margin.coverage
    rows = [_row("", ALL, before, after, smallest, confidence)]
    for variable, column in group_columns(after.predictions):
        for name in np.unique(column[column != ""]).tolist():
            here = np.flatnonzero(column == name)
            rows.append(_row(variable, name, before.where(here), after.where(here), smallest, confidence))
    return GuaranteeTable(
        confidence=confidence,
        smallest=smallest,
        auc_bound=gate.reach(gate.auc_margin, gate.auc_bound),
        flips_bound=gate.reach(gate.max_decision_flips, gate.flips_bound),
        coverage=coverage,
        classes=classes,
        rows=tuple(rows),
    )


def _row(
    variable: str,
    group: str,
    before: CalibratedPredictions,
    after: CalibratedPredictions,
    smallest: int,
    confidence: float,
) -> GuaranteeRow:
    cases, patients = len(after.predictions), distinct(after.patients)
    flips = (before.decided != after.decided).any(axis=1)
    if patients < smallest:
        difference = changed = _few(patients, cases)
    else:
        difference = area_difference(before, after, confidence)[0]
        changed = proportion(flips, after.patients, confidence, cases)
    return GuaranteeRow(
        variable=variable,
        group=group,
        cases=cases,
        patients=patients,
        auc_difference=difference,
        decision_flips=changed,
        kept=tuple(_kept(after, smallest, confidence)),
    )


def _kept(scored: CalibratedPredictions, smallest: int, confidence: float) -> Iterator[Estimate]:
    """Of each class, or of the number, the share that is covered; none where nothing is promised."""
    if scored.operating_point.sets is not None:
        truth = class_truth(scored.truth, is_exclusive(scored.task))
        shares = kept_shares(scored, confidence)
    elif scored.inside is not None:
        inside = scored.inside
        truth = np.ones((len(inside), 1), dtype=bool)
        shares = (proportion(inside, scored.patients, confidence, len(inside)),)
    else:
        return
    for rows, share in zip(truth.T, shares, strict=True):
        count = distinct(scored.patients[rows])
        yield share if count >= smallest else _few(count, int(rows.sum()))


def _few(patients: int, cases: int) -> Estimate:
    return Estimate(None, None, None, cases, f"{patients} patient{'' if patients == 1 else 's'}")

"""Selective decisions: how the error falls as the least sure cases are left undecided.

The curve holds the share of wrong decisions among the surest share of the cases; its area is the AURC (Geifman &
El-Yaniv 2017), 0 at best. A band around the threshold is one point of it, chosen on validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate, has_one_output, is_exclusive
from medopt.metrics.bootstrap import guarded, resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.conformal import class_truth
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import CaseGroups, Floats, Index, Statistic, Weights, ranked

GRID = np.arange(1, 51) / 50


@dataclass(frozen=True, slots=True)
class RiskCurve:
    """Risk against coverage, with its band; each (C,)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DecidedShare:
    """The cases that the operating point does not leave undecided: their share, and the risk among them.

    Of a multi-label study these are its decisions on labels. `sensitivity` and `specificity` among them are those of a
    binary study, else None. `kept` has of each class of prediction sets the share of its cases that are not answered
    otherwise, which is what the sets promise.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    coverage: Estimate
    risk: Estimate
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None
    kept: tuple[Estimate, ...] = ()


@dataclass(frozen=True, slots=True)
class CoverageRisk:
    """The curve of risk against coverage, the area beneath, and the operating point's band where it has one."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    aurc: Estimate
    band: DecidedShare | None
    curve: RiskCurve


def coverage_risk(
    scored: CalibratedPredictions, *, bootstrap: int, confidence: float, seed: int
) -> CoverageRisk | None:
    """The curve of one model's decisions; None where there are no cases. Equally sure cases are decided together.

    Of a multi-label study a case is as sure, and as wrong, as its known labels are.
    """
    unknown = np.isnan(scored.truth)
    if unknown.any():
        rows = np.flatnonzero(~unknown.all(axis=1))
        scored, unknown = scored.where(rows), unknown[rows]
    if len(scored.predictions) == 0:
        return None
    probability = np.where(unknown, np.nan, scored.probability) if unknown.any() else scored.probability
    sure, wrong = scored.operating_point.confidence(probability), scored.wrong
    patients = scored.patients

    def make(groups: CaseGroups | None) -> Statistic:
        ranking = ranked(sure, wrong, groups)

        def statistic(weights: Weights) -> dict[str, Floats]:
            errors, decided = ranking.counts(weights)
            risk = errors / np.maximum(decided, 1)
            total = decided[:, -1:]
            area = (risk * np.diff(decided, axis=1, prepend=0)).sum(axis=1) / total[:, 0]
            place = np.stack([_first(one, total[row, 0]) for row, one in enumerate(decided)])
            curve = np.take_along_axis(risk, place, axis=1)
            return {"aurc": area} | {str(index): column for index, column in enumerate(curve.T)}

        return statistic

    drawn = resampled(make, patients, bootstrap=bootstrap, confidence=confidence, generator=np.random.default_rng(seed))
    found = [drawn[str(index)] for index in range(len(GRID))]
    value = np.array([one.value for one in found], dtype=np.float64)
    low, high = (
        np.array([one.value if getattr(one, side) is None else getattr(one, side) for one in found], dtype=np.float64)
        for side in ("low", "high")
    )
    curve = RiskCurve(*(tuple(column.tolist()) for column in (GRID, value, low, high)))
    return CoverageRisk(guarded(drawn["aurc"]), _band(scored, confidence), curve)


def _first(decided: Weights, total: int) -> Index:
    """The first level at which each share of GRID is decided."""
    return np.minimum(np.searchsorted(decided, GRID * int(total) - 1e-9), len(decided) - 1)


def _band(scored: CalibratedPredictions, confidence: float) -> DecidedShare | None:
    point, patients = scored.operating_point, scored.patients
    if point.band is None and point.sets is None:
        return None
    if scored.task == "multilabel":
        return _of_labels(scored, confidence)
    decided, cases = ~scored.undecided, int((~scored.undecided).sum())

    def among(rows: NDArray[np.bool_], hit: NDArray[np.bool_]) -> Estimate:
        return proportion(hit[rows], patients[rows], confidence, cases)

    coverage = proportion(decided, patients, confidence, len(decided))
    risk, kept = among(decided, scored.wrong), kept_shares(scored, confidence)
    if not has_one_output(scored.task):
        return DecidedShare(coverage, risk, kept=kept)
    target, right = scored.target[:, 0], ~scored.wrong
    return DecidedShare(coverage, risk, among(decided & target, right), among(decided & ~target, right), kept)


def _of_labels(scored: CalibratedPredictions, confidence: float) -> DecidedShare:
    """The decisions on the known labels of a multi-label study, each with its case's patient."""
    known, decided = ~np.isnan(scored.truth), ~scored.undecided
    patients = np.broadcast_to(scored.patients[:, None], known.shape)
    rows = known & decided
    wrong, cases = scored.decided != (scored.truth == 1), int(rows.sum())
    coverage = proportion(decided[known], patients[known], confidence, int(known.sum()))
    risk = proportion(wrong[rows], patients[rows], confidence, cases)
    return DecidedShare(coverage, risk, kept=kept_shares(scored, confidence))


def kept_shares(scored: CalibratedPredictions, confidence: float) -> tuple[Estimate, ...]:
    """Of each class, the share of its cases that are answered with it or left undecided; none without sets."""
    if scored.operating_point.sets is None:
        return ()
    decided = ~scored.undecided
    decided = decided if decided.ndim > 1 else decided[:, None]
    is_multiclass = is_exclusive(scored.task)
    truth = class_truth(scored.truth, is_multiclass)
    answer = scored.decided if is_multiclass else np.hstack([scored.decided, ~scored.decided])
    kept = answer | ~(decided if is_multiclass else np.hstack([decided] * 2))
    return tuple(
        proportion(hit[rows], scored.patients[rows], confidence, int(rows.sum()))
        for hit, rows in zip(kept.T, truth.T, strict=True)
    )

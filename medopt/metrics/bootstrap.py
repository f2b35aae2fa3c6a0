"""Patient-cluster bootstrap: intervals that know that two images of one patient are not two witnesses.

Patients are drawn with replacement and bring all their cases; a figure's interval is the percentile interval of its
value over the draws (Efron & Tibshirani 1993, chapters 8 and 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import Estimate, Predictions, Task, batches
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED, Calibration
from medopt.metrics.weighted import CaseGroups, Floats, Index, Statistic, Weights, distinct, ranking_statistic

LARGE, GROUPS = 20_000, 1000  # from so many cases on, patients are drawn in so many groups
CHUNK = 2**16  # weights made at once: a few arrays of half a megabyte stay in the processor's cache


class Resampling(TypedDict):
    """How patients are drawn: how often, for intervals of which confidence, from which seed."""

    bootstrap: int
    confidence: float
    seed: int


def patient_draws(
    patient_id: NDArray[np.str_] | Index, draws: int, generator: np.random.Generator
) -> Iterator[Weights]:
    """Weights (B, N) of the cases of resampled patients, a few draws at a time; together `draws` rows.

    The draws do not depend on how many are made at a time.
    """
    names, index = np.unique(patient_id, return_inverse=True)
    patients = len(names)
    for part in batches(draws, max(1, CHUNK // len(patient_id))):
        rows = part.stop - part.start
        drawn = generator.integers(patients, size=(rows, patients))
        drawn += patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        # With one case a patient the draws are exchangeable: which count goes to which case does not matter.
        yield counts if patients == len(patient_id) else counts.take(index, axis=1)


def estimates(
    statistic: Statistic,
    patient_id: NDArray[np.str_] | Index,
    *,
    bootstrap: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """Each figure of `statistic` on the cases as they are, with its percentile interval over `bootstrap` draws.

    Draws that do not define a figure (a class is missing) are left out and counted in its note.
    """
    cases = len(patient_id)
    point = {name: float(values[0]) for name, values in statistic(np.ones((1, cases), np.int64)).items()}
    if len(np.unique(patient_id)) < 2:
        return {name: _without_interval(value, cases, "one patient only") for name, value in point.items()}
    parts = [statistic(weights) for weights in patient_draws(patient_id, bootstrap, generator)]
    return {
        name: interval(value, np.concatenate([part[name] for part in parts]), confidence, cases)
        for name, value in point.items()
    }


def resampled(
    make: Callable[[CaseGroups | None], Statistic],
    patients: Index,
    *,
    bootstrap: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """`estimates` of the statistic that `make` builds, in groups of patients where the cases are many.

    Patients (N,) that are dealt at random into a thousand groups vary between the groups as they do among each other,
    so that drawing whole groups gives the same interval; the values themselves come from the cases as they are.
    """
    point, draws = draw_figures_of(make, patients, bootstrap, generator)
    return {name: interval(value, draws[name], confidence, len(patients)) for name, value in point.items()}


def draw_figures_of(
    make: Callable[[CaseGroups | None], Statistic], patients: Index, bootstrap: int, generator: np.random.Generator
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Each figure on the cases as they are, and (B,) on resampled patients; no draws where there is one patient."""
    whole = make(None)
    point = {name: float(values[0]) for name, values in whole(np.ones((1, len(patients)), np.int64)).items()}
    if distinct(patients) < 2:
        return point, {name: np.empty(0) for name in point}
    groups = deal(patients, generator)
    statistic, witnesses = (whole, patients) if groups is None else (make(groups), np.arange(groups.count))
    parts = [statistic(weights) for weights in patient_draws(witnesses, bootstrap, generator)]
    draws = {name: np.concatenate([part[name] for part in parts]) for name in point}
    if groups is not None:  # levels of a score are not the score: move the draws by what that does to the value
        levelled = statistic(np.ones((1, groups.count), np.int64))
        draws = {name: drawn + (point[name] - levelled[name][0]) for name, drawn in draws.items()}
    return point, draws


def deal(patients: Index, generator: np.random.Generator) -> CaseGroups | None:
    """Which of GROUPS groups each case's patient is dealt into; None where there are fewer cases than LARGE."""
    if len(patients) < LARGE:
        return None
    names, index = np.unique(patients, return_inverse=True)
    dealt = generator.permutation(np.arange(len(names)) % GROUPS)
    return CaseGroups(dealt[index], min(GROUPS, len(names)))


def _without_interval(value: float, cases: int, why: str) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, None, cases, "not defined: a class or a decision is missing")
    return Estimate(value, None, None, cases, f"no interval: {why}")


def interval(value: float, drawn: Floats, confidence: float, cases: int) -> Estimate:
    """A figure with its percentile interval over draws (B,); NaN is a draw, or a figure, that is not defined."""
    if len(drawn) == 0:
        return _without_interval(value, cases, "one patient only")
    kept = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(kept) < len(drawn) / 2:
        return _without_interval(value, cases, f"{len(drawn) - len(kept)} of {len(drawn)} draws do not define it")
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    left_out = len(drawn) - len(kept)
    note = f"{left_out} of {len(drawn)} draws do not define it and were left out" if left_out else ""
    return Estimate(value, float(low), float(high), cases, note)


def guarded(estimate: Estimate) -> Estimate:
    """The figure without its interval where that has no width: every draw of a perfect figure is perfect.

    That says nothing of the next patients, so 1.000 (1.000 to 1.000) must not be printed.
    """
    if estimate.low is None or estimate.low != estimate.high:
        return estimate
    note = "no interval: every draw gives this value, so the bootstrap cannot say how sure it is"
    return replace(estimate, low=None, high=None, note=note)


def paired_difference(
    a: Predictions,
    b: Predictions,
    task: Task,
    *,
    bootstrap: int,
    confidence: float,
    generator: np.random.Generator,
    calibrations: tuple[Calibration, Calibration] = (UNCALIBRATED, UNCALIBRATED),
) -> Estimate:
    """AUC of `b` minus AUC of `a` on the same cases, both scored in the same draws.

    The rows may stand in another order. Raises DataError where the cases, their patients or their labels differ.
    """
    first, second = _by_case(a), _by_case(b)
    for column in ("case_id", "patient_id", "labels"):
        if not np.array_equal(getattr(first, column), getattr(second, column)):
            raise DataError(
                f"{a.model} ({len(a)} cases) and {b.model} ({len(b)} cases) cannot be compared: their {column} differ. "
                "A paired difference needs predictions of both models on the very same cases; predict them again."
            )
    if len(first) == 0:
        return Estimate(None, None, None, 0, "no cases")
    scored = (
        CalibratedPredictions(one, task, fitted) for one, fitted in zip((first, second), calibrations, strict=True)
    )
    before, after = (ranking_statistic(one.score, one.truth) for one in scored)

    def statistic(weights: Weights) -> dict[str, Floats]:
        return {"auc": after(weights)["auc"] - before(weights)["auc"]}

    found = estimates(statistic, first.patient_id, bootstrap=bootstrap, confidence=confidence, generator=generator)
    return found["auc"]


def _by_case(predictions: Predictions) -> Predictions:
    return predictions.where(np.argsort(predictions.case_id, kind="stable"))

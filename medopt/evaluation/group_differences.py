"""Figures of a group of cases, and by how much they differ from those of all other cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate, has_one_output
from medopt.evaluation.subgroup_results import GroupDifference
from medopt.metrics.bootstrap import Resampling, draw_figures_of, guarded, interval
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.differences import difference
from medopt.metrics.estimates import maker, shares_of
from medopt.metrics.figures import RATES
from medopt.metrics.weighted import Floats

Rates = dict[str, Estimate]


def rates_of(scored: CalibratedPredictions, options: Resampling, levels: Sequence[float]) -> list[Rates]:
    """RATES with the intervals of the tables, at each of some levels of confidence."""
    scored = scored.judged
    patients, cases = scored.patients, len(scored.predictions)
    areas = auc_with_covariance(scored.score, scored.truth, patients)
    found: list[Rates] = [{"auc": mean_auc(areas, cases, level)} for level in levels]
    if has_one_output(scored.task):
        others = [shares_of(scored, patients, level) for level in levels]
    else:
        generator = np.random.default_rng(options["seed"])
        point, draws = draw_figures_of(maker(scored), patients, options["bootstrap"], generator)
        others = [
            {name: guarded(interval(point[name], draws[name], level, cases)) for name in RATES[1:]} for level in levels
        ]
    return [rates | {name: more[name] for name in RATES[1:]} for rates, more in zip(found, others, strict=True)]


def differences_to_others(
    calibrated: CalibratedPredictions,
    rows: NDArray[np.bool_],
    here: Sequence[Rates],
    options: Resampling,
    levels: Sequence[float],
) -> list[GroupDifference]:
    """Each of RATES in the group `rows` (N,) less that in all other cases, at each level; `here` are the group's.

    Where a patient has cases on both sides (one image of each view), the two figures vary together: by so much the
    interval is narrower.
    """
    others, together = rates_of(calibrated.where(~rows), options, levels), _correlations(calibrated, rows)
    cases = len(calibrated.predictions)
    return [
        GroupDifference(**{name: difference(own[name], rest[name], cases, together[name]) for name in RATES})
        for own, rest in zip(here, others, strict=True)
    ]


def _correlations(calibrated: CalibratedPredictions, rows: NDArray[np.bool_]) -> dict[str, float]:
    """Of each of RATES: how the group's and the others' vary together by what each patient adds to both; 0 is cautious.

    Of several outputs only the AUC's is computed.
    """
    patients, none = calibrated.patients, dict.fromkeys(RATES, 0.0)
    if not np.isin(patients[rows], patients[~rows]).any():
        return none
    correlations = none | {"auc": correlation(_area_shares(calibrated, rows), _area_shares(calibrated, ~rows))}
    if has_one_output(calibrated.task):
        target, right = calibrated.target[:, 0], calibrated.target[:, 0] == calibrated.decided[:, 0]
        for name, side in (("sensitivity", target), ("specificity", ~target)):
            parts = [deviations(right, side & group, patients) for group in (rows, ~rows)]
            correlations[name] = correlation(parts[0], parts[1])
    return correlations


def _area_shares(calibrated: CalibratedPredictions, rows: NDArray[np.bool_]) -> Floats:
    """What each patient (P,) adds to the deviation of the mean AUC of these rows."""
    truth = np.where(rows[:, None], calibrated.truth, np.nan)
    shares: Floats = auc_with_covariance(calibrated.score, truth, calibrated.patients).shares.mean(axis=0)
    return shares


def deviations(right: NDArray[np.bool_], rows: NDArray[np.bool_], patients: NDArray[np.intp]) -> Floats:
    """What each patient (P,) adds to the deviation of the share of `right` (N,) among `rows` (N,)."""
    share = right[rows].mean() if rows.any() else 0.0
    deviations = right[rows].astype(np.float64) - share
    return np.bincount(patients[rows], weights=deviations, minlength=int(patients.max()) + 1).astype(np.float64)


def correlation(first: Floats, second: Floats) -> float:
    """How two figures vary together, from what each patient (P,) adds to both; 0 where one does not vary."""
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if np.isfinite(size) and size > 0 else 0.0

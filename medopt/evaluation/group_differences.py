"""Figures of a group of cases, and by how much they differ from those of all other cases."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.evaluation.subgroup_results import GroupDifference
from medopt.metrics.bootstrap import Resampling, guarded, resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.differences import difference
from medopt.metrics.estimates import maker, shares_of
from medopt.metrics.figures import RATES
from medopt.metrics.weighted import Floats


def rates_of(scored: CalibratedPredictions, options: Resampling) -> dict[str, Estimate]:
    """RATES with the intervals of the tables."""
    patients, confidence = scored.patients, options["confidence"]
    areas = auc_with_covariance(scored.score, scored.truth, patients)
    found = {"auc": mean_auc(areas, len(scored.predictions), confidence)}
    if scored.task == "binary":
        shares = shares_of(scored, patients, confidence)
        return found | {name: shares[name] for name in RATES[1:]}
    generator = np.random.default_rng(options["seed"])
    drawn = resampled(
        maker(scored), patients, bootstrap=options["bootstrap"], confidence=confidence, generator=generator
    )
    return found | {name: guarded(drawn[name]) for name in RATES[1:]}


def difference_to_others(known: CalibratedPredictions, rows: NDArray[np.bool_], options: Resampling) -> GroupDifference:
    """Each of RATES in the group `rows` (N,) less that in all other cases.

    Where a patient has cases on both sides (one image of each view), the two figures vary together: by so much the
    interval is narrower.
    """
    here, others = known.where(rows), known.where(~rows)
    first, second = rates_of(here, options), rates_of(others, options)
    together = _correlations(known, rows)
    return GroupDifference(
        **{name: difference(first[name], second[name], len(known.predictions), together[name]) for name in RATES}
    )


def _correlations(known: CalibratedPredictions, rows: NDArray[np.bool_]) -> dict[str, float]:
    """Of each of RATES: how the group's and the others' vary together by what each patient adds to both; 0 is cautious.

    Of several outputs only the AUC's is computed.
    """
    patients, none = known.patients, dict.fromkeys(RATES, 0.0)
    if not np.isin(patients[rows], patients[~rows]).any():
        return none
    found = none | {"auc": _correlation(_area_shares(known, rows), _area_shares(known, ~rows))}
    if known.task == "binary":
        target, right = known.target[:, 0], known.target[:, 0] == known.decided[:, 0]
        for name, side in (("sensitivity", target), ("specificity", ~target)):
            parts = [_deviations(right, side & group, patients) for group in (rows, ~rows)]
            found[name] = _correlation(parts[0], parts[1])
    return found


def _area_shares(known: CalibratedPredictions, rows: NDArray[np.bool_]) -> Floats:
    """What each patient (P,) adds to the deviation of the mean AUC of these rows."""
    truth = np.where(rows[:, None], known.truth, np.nan)
    shares: Floats = auc_with_covariance(known.score, truth, known.patients).shares.mean(axis=0)
    return shares


def _deviations(right: NDArray[np.bool_], rows: NDArray[np.bool_], patients: NDArray[np.intp]) -> Floats:
    share = right[rows].mean() if rows.any() else 0.0
    deviations = right[rows].astype(np.float64) - share
    return np.bincount(patients[rows], weights=deviations, minlength=int(patients.max()) + 1).astype(np.float64)


def _correlation(first: Floats, second: Floats) -> float:
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if np.isfinite(size) and size > 0 else 0.0

"""Figures of each site and each subgroup, and how far each one lies from all the others.

A group is compared with all other cases, never with the whole, which holds its own cases too. Whoever looks at many
groups finds an odd one by chance alone, which the report says beside the worst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate, Predictions
from medopt.evaluation.subgroup_results import GroupDifference, SubgroupFigures, SubgroupResults, WorstGroup
from medopt.metrics.bootstrap import Resampling, guarded, resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.estimates import falling, maker, shares_of
from medopt.metrics.figures import RATES
from medopt.metrics.weighted import CaseGroups, Floats, Statistic, Weights, distinct


def subgroup_figures(
    scored: CalibratedPredictions, *, smallest: int, bootstrap: int, confidence: float, seed: int
) -> SubgroupResults:
    """Each variable's groups with their figures, their difference to all other cases, and the worst group by AUC.

    A group of fewer than `smallest` patients, or without both classes, has a note instead of figures. Cases whose group
    is not known are in no group, and in no comparison of that variable.
    """
    options = Resampling(bootstrap=bootstrap, confidence=confidence, seed=seed)
    variables: dict[str, dict[str, SubgroupFigures]] = {}
    if len(scored.predictions):
        scored = scored.where(falling(scored.predictions))
        _ = scored.patients  # numbered once for all groups
    for variable, column in _variables(scored.predictions):
        known = scored.where(column != "")
        groups = column[column != ""]
        variables[variable] = {
            str(name): _group(known, groups == name, smallest, options) for name in np.unique(groups).tolist()
        }
    return _with_worst(variables, smallest, confidence)


def _variables(predictions: Predictions) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Site and the subgroups, but for those with one group only."""
    for name, column in {"site": predictions.site, **predictions.subgroups}.items():
        if len(np.unique(column[column != ""])) > 1:
            yield name, column


def _group(
    known: CalibratedPredictions, rows: NDArray[np.bool_], smallest: int, options: Resampling
) -> SubgroupFigures:
    here, patients = known.where(rows), distinct(known.patients[rows])
    counts = {"cases": int(rows.sum()), "patients": patients}
    if known.task == "binary":
        counts["positives"] = int(here.target.sum())
    if reason := _too_small(here, patients, smallest):
        return SubgroupFigures(**counts, note=reason)
    rates = _rates(here, options)
    if reason := _too_small(known.where(~rows), distinct(known.patients[~rows]), smallest):
        return SubgroupFigures(**counts, **rates, note=f"no difference to the others: {reason}")
    return SubgroupFigures(**counts, **rates, difference=_difference(known, rows, options))


def _too_small(scored: CalibratedPredictions, patients: int, smallest: int) -> str:
    if patients < smallest:
        return f"{patients} patients, fewer than {smallest}"
    present = (scored.truth == 1).any(axis=0) & (scored.truth == 0).any(axis=0)
    return "" if present.all() else "a class is missing"


def _rates(scored: CalibratedPredictions, options: Resampling) -> dict[str, Estimate]:
    """RATES with the intervals of the tables."""
    patients, cases = scored.patients, len(scored.predictions)
    found = {"auc": mean_auc(auc_with_covariance(scored.score, scored.truth, patients), cases, options["confidence"])}
    if scored.task == "binary":
        return found | {name: shares_of(scored, patients, options["confidence"])[name] for name in RATES[1:]}
    drawn = _drawn(maker(scored), scored, options)
    return found | {name: guarded(drawn[name]) for name in RATES[1:]}


def _difference(known: CalibratedPredictions, rows: NDArray[np.bool_], options: Resampling) -> GroupDifference:
    """Each of RATES in the group less that in all other cases; patients are drawn once for both."""

    def make(groups: CaseGroups | None) -> Statistic:
        sides = [(known.where(mask), mask) for mask in (rows, ~rows)]
        statistics = [
            (maker(part)(None if groups is None else groups.where(mask)), np.flatnonzero(mask)) for part, mask in sides
        ]

        def statistic(weights: Weights) -> dict[str, Floats]:
            inside, outside = (
                one(weights if groups is not None else weights.take(mask, axis=1)) for one, mask in statistics
            )
            return {name: inside[name] - outside[name] for name in RATES}

        return statistic

    drawn = _drawn(make, known, options)
    return GroupDifference(**{name: guarded(one) for name, one in drawn.items()})


def _drawn(
    make: Callable[[CaseGroups | None], Statistic], scored: CalibratedPredictions, options: Resampling
) -> dict[str, Estimate]:
    return resampled(
        make,
        scored.patients,
        bootstrap=options["bootstrap"],
        confidence=options["confidence"],
        generator=np.random.default_rng(options["seed"]),
    )


def _with_worst(
    variables: Mapping[str, Mapping[str, SubgroupFigures]], smallest: int, confidence: float
) -> SubgroupResults:
    """All groups with the one of the lowest AUC, and what looking at many does."""
    looks = [
        (one.auc.value, WorstGroup(variable=variable, group=name, auc=one.auc, difference=_auc_of(one.difference)))
        for variable, groups in variables.items()
        for name, one in groups.items()
        if one.auc is not None and one.auc.value is not None
    ]
    worst, note = None, "no group is large enough to be judged"
    if looks:
        worst = min(looks, key=lambda look: look[0])[1]
        differences = [look.difference for _, look in looks if look.difference]
        apart = [one for one in differences if one.excludes_zero]
        note = (
            f"{len(looks)} groups were looked at; the intervals of {len(apart)} AUC differences exclude 0, where "
            f"chance alone would let {(1 - confidence) * len(differences):.1f} of {len(differences)} do so. The worst "
            "of many is low by selection, too."
        )
    groups = {variable: dict(one) for variable, one in variables.items()}
    return SubgroupResults(variables=groups, smallest_group=smallest, worst=worst, looks=len(looks), note=note)


def _auc_of(difference: GroupDifference | None) -> Estimate | None:
    return difference.auc if difference else None

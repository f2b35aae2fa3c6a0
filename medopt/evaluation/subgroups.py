"""Figures of each site and each subgroup, and how far each one lies from all the others.

A group is compared with all other cases, never with the whole, which holds its own cases too. Whoever looks at many
groups finds an odd one by chance alone: so the intervals of all differences hold together (Bonferroni), and those that
each difference has alone stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from medopt.core.format import count_text
from medopt.core.records import Estimate, Predictions, has_one_output
from medopt.evaluation.group_differences import differences_to_others, rates_of
from medopt.evaluation.subgroup_results import GroupDifference, SubgroupFigures, SubgroupResults, WorstGroup
from medopt.metrics.bootstrap import Resampling
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.estimates import falling
from medopt.metrics.weighted import distinct

Groups = dict[str, dict[str, SubgroupFigures]]


def subgroup_figures(
    scored: CalibratedPredictions, *, smallest: int, bootstrap: int, confidence: float, seed: int
) -> SubgroupResults:
    """Each variable's groups with their figures, their difference to all other cases, and the worst group by AUC.

    A group of fewer than `smallest` patients, or without both classes, has a note instead of figures. Cases whose group
    is not known are in no group, and in no comparison of that variable.
    """
    options = Resampling(bootstrap=bootstrap, confidence=confidence, seed=seed)
    if len(scored.predictions):
        scored = scored.where(falling(scored.predictions))
        _ = scored.patients  # numbered once for all groups
    columns = dict(group_columns(scored.predictions))
    looks = sum(_comparisons(scored, column, smallest) for column in columns.values())
    levels = confidence, 1 - (1 - confidence) / max(1, looks)
    variables: Groups = {}
    for variable, column in columns.items():
        known, groups = scored.where(column != ""), column[column != ""]
        variables[variable] = {
            str(name): _group(known, groups == name, smallest, options, levels) for name in np.unique(groups).tolist()
        }
    return _with_worst(variables, smallest, confidence, looks)


def group_columns(predictions: Predictions) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Site and the subgroups, but for those with one group only."""
    for name, column in {"site": predictions.site, **predictions.subgroups}.items():
        if len(np.unique(column[column != ""])) > 1:
            yield name, column


def _comparisons(scored: CalibratedPredictions, column: NDArray[np.str_], smallest: int) -> int:
    """How many differences of this variable are looked at: one for two groups, as each is the other's."""
    known, groups = scored.where(column != ""), column[column != ""]
    names = np.unique(groups)
    compared = [
        name
        for name in names.tolist()
        if not any(_too_small(known, side, smallest) for side in (groups == name, groups != name))
    ]
    return min(len(compared), 1) if len(names) == 2 else len(compared)


def _group(
    calibrated: CalibratedPredictions,
    rows: NDArray[np.bool_],
    smallest: int,
    options: Resampling,
    levels: tuple[float, float],
) -> SubgroupFigures:
    here, patients = calibrated.where(rows), distinct(calibrated.patients[rows])
    counts = {"cases": int(rows.sum()), "patients": patients}
    if has_one_output(calibrated.task):
        counts["positives"] = int(here.target.sum())
    if reason := _too_small(calibrated, rows, smallest):
        return SubgroupFigures(**counts, note=reason)
    rates = rates_of(here, options, levels)
    if reason := _too_small(calibrated, ~rows, smallest):
        return SubgroupFigures(**counts, **rates[0], note=f"no difference to the others: {reason}")
    uncorrected, corrected = differences_to_others(calibrated, rows, rates, options, levels)
    return SubgroupFigures(**counts, **rates[0], difference=corrected, uncorrected=uncorrected)


def _too_small(calibrated: CalibratedPredictions, rows: NDArray[np.bool_], smallest: int) -> str:
    patients, truth = distinct(calibrated.patients[rows]), calibrated.truth[rows]
    if patients < smallest:
        return f"{patients} patients, fewer than {smallest}"
    return "" if ((truth == 1).any(axis=0) & (truth == 0).any(axis=0)).all() else "a class is missing"


def _with_worst(
    variables: Mapping[str, Mapping[str, SubgroupFigures]], smallest: int, confidence: float, looks: int
) -> SubgroupResults:
    """All groups with the one of the lowest AUC, and what looking at many does."""
    groups = {variable: dict(one) for variable, one in variables.items()}
    judged = [
        (one.auc.value, WorstGroup(variable=variable, group=name, auc=one.auc, difference=_auc_of(one.difference)), one)
        for variable, named in variables.items()
        for name, one in named.items()
        if one.auc is not None and one.auc.value is not None
    ]
    if not judged:
        note = "no group is large enough to be judged"
        return SubgroupResults(variables=groups, smallest_group=smallest, worst=None, looks=0, note=note)
    apart = sum(one.difference is not None and one.difference.auc.excludes_zero for _, _, one in judged)
    alone = sum(one.uncorrected is not None and one.uncorrected.auc.excludes_zero for _, _, one in judged)
    differ = "differ" if apart > 1 else "differs"
    note = (
        f"{apart or 'None'} of {count_text(len(judged), 'subgroup')} {differ} significantly in the AUC "
        f"({100 * confidence:g} % intervals, corrected for {count_text(looks, 'comparison')}); without the "
        f"correction {alone or 'none'} would. The lowest of many groups is partly low by chance."
    )
    worst = min(judged, key=lambda look: look[0])[1]
    return SubgroupResults(variables=groups, smallest_group=smallest, worst=worst, looks=len(judged), note=note)


def _auc_of(difference: GroupDifference | None) -> Estimate | None:
    return difference.auc if difference else None

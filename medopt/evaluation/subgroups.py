"""Figures of each site and each subgroup, and how far each one lies from all the others.

A group is not a witness against itself: it is compared with the rest, never with the whole. Looking at many groups
finds an odd one by chance alone, which the report says beside the worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate, Predictions
from medopt.evaluation.estimates import falling, maker, shares_of
from medopt.metrics.bootstrap import guarded, resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.weighted import CaseGroups, Floats, Statistic, Weights, distinct

FIGURES = ("auc", "sensitivity", "specificity")


def subgroup_figures(
    scored: CalibratedPredictions, *, smallest: int, bootstrap: int, confidence: float, seed: int
) -> dict[str, Any]:
    """Each variable's groups with their figures, their difference to all other cases, and the worst group by AUC.

    A group of fewer than `smallest` patients, or without both classes, has a note instead of figures. Cases whose group
    is not known are in no group, and in no comparison of that variable.
    """
    options = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    found: dict[str, Any] = {}
    if len(scored.predictions):
        scored = scored.where(falling(scored.predictions))
        _ = scored.patients  # numbered once for all groups
    for variable, column in _variables(scored.predictions):
        known = scored.where(column != "")
        groups = column[column != ""]
        found[variable] = {
            str(name): _group(known, groups == name, smallest, options) for name in np.unique(groups).tolist()
        }
    return {"variables": found, "smallest_group": smallest} | _worst(found, confidence)


def _variables(predictions: Predictions) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Site and the subgroups, but for those with one group only."""
    for name, column in {"site": predictions.site, **predictions.subgroups}.items():
        if len(np.unique(column[column != ""])) > 1:
            yield name, column


def _group(
    known: CalibratedPredictions, rows: NDArray[np.bool_], smallest: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    here, patients = known.where(rows), distinct(known.patients[rows])
    told: dict[str, Any] = {"cases": int(rows.sum()), "patients": patients}
    if known.task == "binary":
        told["positives"] = int(here.target.sum())
    why = _too_small(here, patients, smallest)
    if why:
        return told | {"note": why}
    told |= {name: one.as_dict() for name, one in _figures(here, options).items()}
    why = _too_small(known.where(~rows), distinct(known.patients[~rows]), smallest)
    if why:
        return told | {"difference": None, "note": f"no difference to the others: {why}"}
    return told | {"difference": {name: one.as_dict() for name, one in _difference(known, rows, options).items()}}


def _too_small(scored: CalibratedPredictions, patients: int, smallest: int) -> str:
    if patients < smallest:
        return f"{patients} patients, fewer than {smallest}"
    present = scored.target.any(axis=0) & ~scored.target.all(axis=0)
    return "" if present.all() else "a class is missing"


def _figures(scored: CalibratedPredictions, options: Mapping[str, Any]) -> dict[str, Estimate]:
    """FIGURES with the intervals of the tables."""
    patients, cases = scored.patients, len(scored.predictions)
    found = {"auc": mean_auc(auc_with_covariance(scored.score, scored.target, patients), cases, options["confidence"])}
    if scored.task == "binary":
        return found | {name: shares_of(scored, patients, options["confidence"])[name] for name in FIGURES[1:]}
    drawn = resampled(maker(scored), patients, **_resampling(options))
    return found | {name: guarded(drawn[name]) for name in FIGURES[1:]}


def _difference(
    known: CalibratedPredictions, rows: NDArray[np.bool_], options: Mapping[str, Any]
) -> dict[str, Estimate]:
    """Each of FIGURES in the group less that in all other cases; patients are drawn once for both."""

    def make(groups: CaseGroups | None) -> Statistic:
        sides = [(known.where(mask), mask) for mask in (rows, ~rows)]
        statistics = [
            (maker(part)(None if groups is None else groups.where(mask)), np.flatnonzero(mask)) for part, mask in sides
        ]

        def statistic(weights: Weights) -> dict[str, Floats]:
            inside, outside = (
                one(weights if groups is not None else weights.take(mask, axis=1)) for one, mask in statistics
            )
            return {name: inside[name] - outside[name] for name in FIGURES}

        return statistic

    found = resampled(make, known.patients, **_resampling(options))
    return {name: guarded(one) for name, one in found.items()}


def _resampling(options: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: options[name] for name in ("bootstrap", "confidence")}
    return kept | {"generator": np.random.default_rng(options["seed"])}


def _worst(found: Mapping[str, Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    """The group of the lowest AUC, and what many looks do."""
    looked = [(variable, name, one) for variable, groups in found.items() for name, one in groups.items()]
    judged = [look for look in looked if look[2].get("auc", {}).get("value") is not None]
    if not judged:
        return {"worst": None, "looks": 0, "note": "no group is large enough to be judged"}
    variable, name, one = min(judged, key=lambda look: look[2]["auc"]["value"])
    differences = [look[2]["difference"]["auc"] for look in judged if look[2].get("difference")]
    apart = [d for d in differences if d["low"] is not None and (d["low"] > 0 or d["high"] < 0)]
    note = (
        f"{len(judged)} groups were looked at; the intervals of {len(apart)} AUC differences exclude 0, where chance "
        f"alone would let {(1 - confidence) * len(differences):.1f} of {len(differences)} do so. The worst of many is "
        "low by selection, too."
    )
    apart_by = (one.get("difference") or {}).get("auc")
    worst = {"variable": variable, "group": name, "auc": one["auc"], "difference": apart_by}
    return {"worst": worst, "looks": len(judged), "note": note}

"""Several models on the same cases: paired differences of their figures, each with its interval and its p value.

AUC: the covariance of two AUCs on the same patients (DeLong et al. 1988; Obuchowski 1997 for several images a patient),
with Student's t as for one AUC. Sensitivity and specificity: Newcombe's paired interval over patients
(`medopt.evaluation.paired_shares`). The Brier score: both models are scored in the same draws of patients; p is twice
the smaller share of draws on one side of 0 (Efron & Tibshirani 1993, chapter 15).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import Estimate, Split, is_exclusive
from medopt.core.result import Result
from medopt.evaluation.paired_shares import paired_shares
from medopt.metrics.bootstrap import Resampling, draw_figures_of, guarded, interval
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, difference_of
from medopt.metrics.estimates import maker
from medopt.metrics.weighted import CaseGroups, Floats, Statistic, Weights, brier_statistic, distinct


class PairedFigure(Result):
    """One figure of two models on the same cases: their values, the difference (model less reference) and its p."""

    reference: float | None
    value: float | None
    difference: Estimate
    p: float | None


class PairedFigures(Result):
    """The figures that are compared; `by_name` has them in order."""

    auc: PairedFigure
    sensitivity: PairedFigure
    specificity: PairedFigure
    brier: PairedFigure

    def by_name(self) -> dict[str, PairedFigure]:
        """All of them, by their names."""
        return {name: getattr(self, name) for name in COMPARED}


COMPARED = tuple(PairedFigures.model_fields)


class SiteFigures(PairedFigures):
    """The same on the cases of one site."""

    cases: int


class ComparedRun(Result):
    """A model against the reference on all cases, and at each site where there are several."""

    name: str
    figures: PairedFigures
    sites: dict[str, SiteFigures]


class Comparison(Result):
    """Every other model against `reference` on the cases of one split that all have.

    `verdicts` is what the verdicts of these runs have against their models.
    """

    split: Split
    reference: str
    cases: int
    patients: int
    confidence: float
    runs: tuple[ComparedRun, ...]
    note: str
    verdicts: tuple[str, ...] = ()


def on_shared_cases(
    models: Mapping[str, CalibratedPredictions], *, shared: bool = False
) -> dict[str, CalibratedPredictions]:
    """The models' rows on the cases that all of them have, in one order; the first is the reference.

    Raises DataError where a model has cases that another has not, unless `shared` takes those that all have; always
    where none is left, or where patients or labels of shared cases differ.
    """
    names = list(models)
    common = set(models[names[0]].predictions.case_id.tolist())
    for one in models.values():
        common &= set(one.predictions.case_id.tolist())
    counts = ", ".join(f"{name} {len(one.predictions)}" for name, one in models.items())
    if not common:
        raise DataError(f"The runs share no case ({counts}): they are of other manifests or splits.")
    if not shared and any(len(one.predictions) != len(common) for one in models.values()):
        raise DataError(
            f"The runs did not score the same cases: {counts}, and {len(common)} are shared by all. Compare them on "
            "these with --shared, or run them again from one manifest."
        )
    found = {name: _ordered(one, common) for name, one in models.items()}
    first = found[names[0]].predictions
    for name in names[1:]:
        other = found[name].predictions
        for column, what in (("patient_id", "patients"), ("labels", "labels")):
            apart = getattr(first, column) != getattr(other, column)
            count = int(apart.reshape(len(first), -1).any(axis=1).sum())
            if count:
                raise DataError(
                    f"{names[0]} and {name} give {count} of {len(first)} shared cases other {what}, so that their "
                    "figures do not answer one question. Run them again from one manifest."
                )
    return found


def _ordered(scored: CalibratedPredictions, cases: set[str]) -> CalibratedPredictions:
    names = scored.predictions.case_id
    order = np.argsort(names, kind="stable")
    return scored.where(order[np.isin(names[order], list(cases))])


def compare_models(models: Mapping[str, CalibratedPredictions], how: Resampling, split: Split = "test") -> Comparison:
    """Every other model against the first, on all cases and at each site; `models` are those of `on_shared_cases`.

    `split` is the one that the cases are of.
    """
    names, first = list(models), next(iter(models.values()))
    sites = np.unique(first.predictions.site).tolist()

    def at_sites(model: CalibratedPredictions) -> dict[str, SiteFigures]:
        if len(sites) < 2:
            return {}
        rows = {site: first.predictions.site == site for site in sites}
        return {
            site: SiteFigures(**_differences(first.where(mask), model.where(mask), how), cases=int(mask.sum()))
            for site, mask in rows.items()
        }

    runs = tuple(
        ComparedRun(
            name=name,
            figures=PairedFigures(**_differences(first, models[name], how)),
            sites=at_sites(models[name]),
        )
        for name in names[1:]
    )
    looks = sum(1 + len(run.sites) for run in runs)
    return Comparison(
        split=split,
        reference=names[0],
        cases=len(first.predictions),
        patients=distinct(first.patients),
        confidence=how["confidence"],
        runs=runs,
        note=f"{looks} comparisons of each figure were made; p values are not adjusted for that.",
    )


def _differences(
    first: CalibratedPredictions, second: CalibratedPredictions, how: Resampling
) -> dict[str, PairedFigure]:
    """Each of COMPARED, by its name."""
    order = np.argsort(-first.predictions.logits[:, 0], kind="stable")
    first, second = first.where(order).judged, second.where(order).judged

    def make(groups: CaseGroups | None) -> Statistic:
        exclusive = is_exclusive(first.task)
        before, after = (
            brier_statistic(one.probability, one.truth, exclusive=exclusive, groups=groups) for one in (first, second)
        )

        def statistic(weights: Weights) -> dict[str, Floats]:
            return {"brier": after(weights)["brier"] - before(weights)["brier"]}

        return statistic

    patients, cases = first.patients, len(first.predictions)
    point, draws = draw_figures_of(make, patients, how["bootstrap"], np.random.default_rng(how["seed"]))
    whole = np.ones((1, cases), np.int64)
    values = [maker(one)(None)(whole) for one in (first, second)]
    brier = guarded(interval(point["brier"], draws["brier"], how["confidence"], cases))
    told = {"auc": area_difference(first, second, how["confidence"]), "brier": (brier, _share_beyond(draws["brier"]))}
    told |= paired_shares(first, second, how["confidence"])
    found = {}
    for name in COMPARED:
        difference, p = told[name]
        old, new = (None if np.isnan(one[name][0]) else float(one[name][0]) for one in values)
        undefined = difference.value is None or difference.low is None
        found[name] = PairedFigure(reference=old, value=new, difference=difference, p=None if undefined else p)
    return found


def area_difference(
    first: CalibratedPredictions, second: CalibratedPredictions, confidence: float
) -> tuple[Estimate, float | None]:
    """AUC of the second less that of the first on the same rows, with its interval, and p of no difference."""
    first, second = first.judged, second.judged
    outputs, cases = first.truth.shape[1], len(first.predictions)
    patients = first.patients
    found = auc_with_covariance(np.hstack([second.score, first.score]), np.hstack([first.truth] * 2), patients)
    weights = np.repeat([1 / outputs, -1 / outputs], outputs)
    return difference_of(found, weights, cases, confidence)


def _share_beyond(draws: Floats) -> float | None:
    """Twice the smaller share of draws at or beyond 0, the value itself counted as one draw."""
    kept = draws[~np.isnan(draws)]
    if len(kept) == 0:
        return None
    beyond = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(kept) + 1))

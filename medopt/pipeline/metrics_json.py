"""The figures of a finished run: `metrics.json`, the pictures, and what a release says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.covariates import CovariateTerms
from medopt.core.provenance import machine, package_versions
from medopt.core.records import KINDS, EpochRecord, Override, Predictions
from medopt.core.result import ByKind, by_kind
from medopt.evaluation.analysis_results import BaselinesResult
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.evaluate import evaluate_model, figures_of, patient_result
from medopt.evaluation.gate_verdict import GateRecord
from medopt.evaluation.guarantee import guarantee_table
from medopt.evaluation.model_verdict import judge_model
from medopt.evaluation.run_metrics import Int8Change, KeptWeights, ModelResult, RunMetrics
from medopt.figures.agreement import agreement_figure
from medopt.figures.performance import confusion_figure, learning_curves, reliability_figure, roc_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.figures import Figures
from medopt.metrics.number_figures import NumberFigures
from medopt.metrics.proportions import proportion
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.reevaluate import draw_decisions
from medopt.release.layout import FORMAT, MODELS, ModelInfo, Provenance, ReleaseInfo

T = TypeVar("T")
FIGURES = (
    *("learning_curves", "roc", "reliability", "confusion"),
    *("precision_recall", "decision_curve", "coverage_risk", "subgroups"),
)


def summarize(
    study: Study,
    tables: Sequence[Predictions],
    judged: GateResult,
    sizes: ByKind[int],
    *,
    override: Override | None = None,
    baselines: BaselinesResult | None = None,
    kept_weights: KeptWeights | None = None,
    terms: CovariateTerms | None = None,
    mlflow_run_id: str | None = None,
    data_notes: Sequence[str] = (),
) -> RunMetrics:
    """All of `metrics.json`. `tables` are the validation and test predictions of the float and the int8 model.

    `override` names who would release the model; it is kept if a verdict did not pass it. `terms` are the coefficients
    of covariates.
    """
    settings, seed, confidence = study.evaluation, study.seed, study.evaluation.confidence
    table_of = {table.model: table for table in tables}
    scored = by_kind(lambda kind: scored_as_judged(study, table_of[kind], judged))
    test = by_kind(lambda kind: scored[kind].where(scored[kind].predictions.split == "test"))
    results = by_kind(lambda kind: evaluate_model(test[kind], study.data.labels, settings, seed))
    number, grades = (_of_both(getattr(results.float, of), getattr(results.int8, of)) for of in ("number", "grades"))
    kappa = None if grades is None else by_kind(lambda kind: grades[kind].kappa)
    auc = by_kind(lambda kind: results[kind].figures.auc)
    verdict = judge_model(test, auc, study.data.labels, baselines, kappa)
    is_passed = judged.verdict.passed and verdict.better_than_chance

    def figures(split: CalibratedPredictions, rows: NDArray[np.bool_]) -> Figures:
        return figures_of(split.where(rows), settings, seed)

    def at_site(site: str) -> ByKind[Figures]:
        return by_kind(lambda kind: figures(test[kind], test[kind].predictions.site == site))

    return RunMetrics(
        schema_version=1,
        study=study.name,
        seed=seed,
        mlflow_run_id=mlflow_run_id,
        data_notes=tuple(data_notes),
        validation=by_kind(lambda kind: figures(scored[kind], scored[kind].predictions.split == "val")),
        test=by_kind(lambda kind: results[kind].figures),
        sites={site: at_site(site) for site in np.unique(test.float.predictions.site).tolist()},
        patients=by_kind(lambda kind: patient_result(table_of[kind], settings, study.data.task, seed, judged.shift)),
        calibration=by_kind(lambda kind: results[kind].calibration),
        net_benefit=by_kind(lambda kind: results[kind].net_benefit),
        selective=by_kind(lambda kind: results[kind].selective),
        subgroups=by_kind(lambda kind: results[kind].subgroups),
        int8_on_test=int8_on_test(test, confidence),
        operating_point=by_kind(lambda kind: judged.points[kind]),
        engine=by_kind(lambda kind: judged.engines[kind][0]),
        latency_ms=judged.latency_ms,
        size_bytes=sizes,
        confidence=confidence,
        gate=GateRecord(**dict(judged.verdict), in_float=judged.in_float, override=None if is_passed else override),
        kept=kept_weights,
        prior_shift=judged.shift,
        number=number,
        margin=_of_both(judged.margins.get("float"), judged.margins.get("int8")),
        grades=grades,
        guarantee=guarantee_table(
            test, judged.verdict.figures.limits, study.data.labels, settings.smallest_group, confidence
        ),
        covariates=terms,
        verdict=verdict,
        machine=machine(),
        packages=package_versions(),
    )


def _of_both(before: T | None, after: T | None) -> ByKind[T] | None:
    """What both models have; None of a study that asks for no such thing."""
    return None if before is None or after is None else ByKind(float=before, int8=after)


def int8_on_test(test: ByKind[CalibratedPredictions], confidence: float) -> Int8Change:
    """What int8 changes on the test split: the AUC by a paired interval, and the share of decisions that flip."""
    before, after = test.float, test.int8
    flips = (before.decided != after.decided).any(axis=1)
    return Int8Change(
        auc_difference=area_difference(before, after, confidence)[0],
        decision_flips=proportion(flips, before.patients, confidence, len(flips)),
    )


def scored_as_judged(study: Study, table: Predictions, judged: GateResult) -> CalibratedPredictions:
    """A model's predictions as its calibration and operating point read them."""
    found = CalibratedPredictions(table, study.data.task, judged.calibrations[table.model], judged.points[table.model])
    return replace(found, scale=study.number_scale, margin=judged.margins.get(table.model))


def draw_figures(
    study: Study,
    history: Sequence[EpochRecord],
    tables: Sequence[Predictions],
    judged: GateResult,
    metrics: RunMetrics,
    folder: Path,
) -> None:
    """Learning curves; all else on the test split, float and int8 together, the subgroups of the int8 model."""
    paths = [folder / f"{name}.png" for name in FIGURES[:4]]
    metric = study.metric_name
    if history:  # an ensemble is not trained
        kept = metrics.kept.epoch if metrics.kept else None
        learning_curves(history, paths[0], metric=metric, kept_epoch=kept)
    models = [scored_as_judged(study, table, judged).where(table.split == "test") for table in tables]
    labels, confidence = study.data.labels, study.evaluation.confidence
    draws = study.evaluation.bootstrap
    if metrics.number is not None and (scale := study.number_scale) is not None:
        by_name: dict[str, NumberFigures] = {kind: metrics.number[kind] for kind in KINDS}
        agreement_figure(models, by_name, scale, folder / "agreement.png", f"Agreement: {scale.quantity}, test split")
    roc_figure(
        models, labels, paths[1], bootstrap=draws, confidence=confidence, seed=study.seed, title="ROC, test split"
    )
    reliability_figure(models, labels, paths[2], confidence=confidence, title="Reliability, test split")
    confusion_figure(models, labels, paths[3], title="Confusion, test split")
    results: dict[str, ModelResult] = {kind: metrics.of_model(kind) for kind in KINDS}
    draw_decisions(models, labels, results, folder, confidence, "test")


def release_info(
    study: Study,
    judged: GateResult,
    metrics: RunMetrics,
    fingerprint: str,
    provenance: Provenance,
    domain: str | None = None,
) -> ReleaseInfo:
    """What the release says of itself."""
    models = {
        kind: ModelInfo(
            file=file,
            calibration=judged.calibrations[kind],
            threshold=judged.points[kind].threshold,
            rule=judged.points[kind].rule,
            band=judged.points[kind].band,
            margin=judged.margins.get(kind),
            sets=judged.points[kind].sets,
            covariates=metrics.covariates[kind] if metrics.covariates else None,
            engines=judged.engines[kind],
        )
        for kind, file in MODELS.items()
    }
    return ReleaseInfo(
        format=FORMAT,
        study=study.name,
        question=study.question,
        intended_use=study.intended_use,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=study.data.task,
        labels=study.data.labels,
        number=study.number_scale,
        covariates=study.data.covariates,
        prepare=study.prepare,
        series=study.data.series,
        chain_fingerprint=fingerprint,
        models=models,
        profile=study.compression.profile,
        domain=domain,
        gate=metrics.gate,
        figures=metrics.for_release(),
        provenance=provenance,
    )

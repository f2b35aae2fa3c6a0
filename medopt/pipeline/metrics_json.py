"""The figures of a finished run: `metrics.json`, the pictures, and what a release says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medopt.config import Evaluation, Study
from medopt.core.records import KINDS, EpochRecord, Predictions
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.evaluate import beyond_figures, calibration_told, figures_of, patients_told
from medopt.figures.performance import confusion_figure, learning_curves, reliability_figure, roc_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.proportions import proportion
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.reevaluate import draw_decisions
from medopt.release.layout import FORMAT, MODELS, ModelInfo, ReleaseInfo

FIGURES = (
    *("learning_curves", "roc", "reliability", "confusion"),
    *("precision_recall", "decision_curve", "coverage_risk", "subgroups"),
)

TOLD = (
    *("test", "sites", "latency_ms", "size_bytes", "confidence"),
    *("calibration", "subgroups", "robustness", "domain", "explanations", "pruning"),
)
"""What of `metrics` a release tells of itself."""


def summarize(
    study: Study, tables: Sequence[Predictions], judged: GateResult, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Everything of `metrics.json` that comes from predictions, with intervals: validation, test, sites and the rest.

    `calibration`, `net_benefit`, `selective`, `subgroups` and, where a patient has several images, `patients` are of
    the test split.
    """
    wanted, seed, labels = study.evaluation, study.seed, study.data.labels
    found: dict[str, Any] = {"validation": {}, "test": {}, "sites": {}, "patients": {}}
    for table in tables:
        scored = scored_as_judged(study, table, judged)
        test = scored.where(table.split == "test")
        found["validation"][table.model] = figures_of(scored.where(table.split == "val"), wanted, seed)
        found["test"][table.model] = figures_of(test, wanted, seed)
        for site in np.unique(test.predictions.site).tolist():
            here = test.where(test.predictions.site == site)
            found["sites"].setdefault(site, {})[table.model] = figures_of(here, wanted, seed)
        found.setdefault("calibration", {})[table.model] = calibration_told(test)
        for name, one in beyond_figures(test, labels, wanted, seed).items():
            found.setdefault(name, {})[table.model] = one
        found["patients"][table.model] = patients_told(table, wanted, study.data.task, seed)
    found["int8_on_test"] = int8_on_test([scored_as_judged(study, table, judged) for table in tables], wanted)
    return found | {
        "operating_point": {kind: judged.points[kind].as_dict() for kind in KINDS},
        "engine": {kind: judged.engines[kind][0] for kind in KINDS},
        "latency_ms": judged.latency_ms,
        "size_bytes": dict(sizes),
        "confidence": study.evaluation.confidence,
        "gate": {
            "passed": judged.verdict.passed,
            "reasons": list(judged.verdict.reasons),
            "figures": judged.verdict.figures,
            "in_float": list(judged.in_float),
        },
    }


def int8_on_test(models: Sequence[CalibratedPredictions], wanted: Evaluation) -> dict[str, Any]:
    """What int8 changes on the test split: the AUC by a paired interval, and the share of decisions that flip."""
    before, after = (one.where(one.predictions.split == "test") for one in models)
    flips = (before.decided != after.decided).any(axis=1)
    return {
        "auc_difference": area_difference(before, after, wanted.confidence)[0].as_dict(),
        "decision_flips": proportion(flips, before.patients, wanted.confidence, len(flips)).as_dict(),
    }


def scored_as_judged(study: Study, table: Predictions, judged: GateResult) -> CalibratedPredictions:
    """A model's predictions as its calibration and operating point read them."""
    return CalibratedPredictions(table, study.data.task, judged.calibrations[table.model], judged.points[table.model])


def draw_figures(
    study: Study,
    history: Sequence[EpochRecord],
    tables: Sequence[Predictions],
    judged: GateResult,
    metrics: Mapping[str, Any],
    folder: Path,
) -> None:
    """Learning curves; all else on the test split, float and int8 together, the subgroups of the int8 model."""
    paths = [folder / f"{name}.png" for name in FIGURES[:4]]
    metric = "auc" if study.training.metric == "auc" else "negative loss"
    if history:  # an ensemble is not trained
        learning_curves(history, paths[0], metric=metric)
    models = [scored_as_judged(study, table, judged).where(table.split == "test") for table in tables]
    labels, confidence = study.data.labels, study.evaluation.confidence
    draws = study.evaluation.bootstrap
    roc_figure(
        models, labels, paths[1], bootstrap=draws, confidence=confidence, seed=study.seed, title="ROC, test split"
    )
    reliability_figure(models, labels, paths[2], confidence=confidence, title="Reliability, test split")
    confusion_figure(models, labels, paths[3], title="Confusion, test split")
    told = {
        kind: {key: metrics[key][kind] for key in ("net_benefit", "selective", "subgroups")}
        | {"figures": metrics["test"][kind]}
        for kind in KINDS
    }
    draw_decisions(models, labels, told, folder, confidence, "test")


def release_info(
    study: Study,
    judged: GateResult,
    metrics: Mapping[str, Any],
    fingerprint: str,
    provenance: Mapping[str, Any],
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
        prepare=study.prepare,
        series=study.data.series,
        chain_fingerprint=fingerprint,
        models=models,
        profile=study.compression.profile,
        domain=domain,
        gate=metrics["gate"],
        figures={key: metrics[key] for key in TOLD if key in metrics},
        provenance=dict(provenance),
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """`metrics.json` of a run folder, with what was measured in further stages under the names of their files."""
    names = ("pruning", "robustness", "explanations", "domain")
    further = {name: folder / f"{name}.json" for name in names}
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics | {
        name: json.loads(path.read_text(encoding="utf-8")) for name, path in further.items() if path.exists()
    }

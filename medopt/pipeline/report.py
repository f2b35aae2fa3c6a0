"""The figures of a finished run: `metrics.json`, the pictures, and what a release says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.evaluation.figures import confusion_figure, learning_curves, reliability_figure, roc_figure
from medopt.evaluation.scored import Scored
from medopt.evaluation.summary import by_site, evaluate
from medopt.pipeline.stages import KINDS, Judged
from medopt.records import EpochRecord, Estimate, Predictions
from medopt.release.contents import MODELS, ModelInfo, ReleaseInfo

FIGURES = ("learning_curves", "roc", "reliability", "confusion")


def summarize(study: Study, tables: Sequence[Predictions], judged: Judged, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Everything of `metrics.json` that comes from predictions: validation, test and sites, with intervals."""
    options: dict[str, Any] = {
        "bootstrap": study.evaluation.bootstrap,
        "confidence": study.evaluation.confidence,
        "seed": study.seed,
    }
    found: dict[str, Any] = {"validation": {}, "test": {}, "sites": {}}
    for table in tables:
        fitted = (judged.temperatures[table.model], judged.points[table.model], study.data.task)
        for name, split in (("validation", "val"), ("test", "test")):
            part = table.where(table.split == split)
            found[name][table.model] = _as_dict(evaluate(part, *fitted, **options))
        test = table.where(table.split == "test")
        for site, figures in by_site(test, *fitted, **options).items():
            found["sites"].setdefault(site, {})[table.model] = _as_dict(figures)
    return found | {
        "operating_point": {kind: judged.points[kind].as_dict() for kind in KINDS},
        "temperature": judged.temperatures,
        "engine": {kind: judged.engines[kind][0] for kind in KINDS},
        "latency_ms": judged.latency_ms,
        "size_bytes": dict(sizes),
        "confidence": study.evaluation.confidence,
        "gate": {
            "passed": judged.verdict.passed,
            "reasons": list(judged.verdict.reasons),
            "figures": judged.verdict.figures,
        },
    }


def _as_dict(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.as_dict() for name, estimate in figures.items()}


def draw_figures(
    study: Study, history: Sequence[EpochRecord], tables: Sequence[Predictions], judged: Judged, folder: Path
) -> None:
    """Learning curves; ROC, reliability and confusion on the test split, float and int8 together."""
    paths = [folder / f"{name}.png" for name in FIGURES]
    metric = "auc" if study.training.metric == "auc" else "negative loss"
    if history:  # an ensemble is not trained
        learning_curves(history, paths[0], metric=metric)
    models = [
        Scored(
            table.where(table.split == "test"),
            study.data.task,
            judged.temperatures[table.model],
            judged.points[table.model],
        )
        for table in tables
    ]
    labels, confidence = study.data.labels, study.evaluation.confidence
    draws = study.evaluation.bootstrap
    roc_figure(
        models, labels, paths[1], bootstrap=draws, confidence=confidence, seed=study.seed, title="ROC, test split"
    )
    reliability_figure(models, labels, paths[2], confidence=confidence, title="Reliability, test split")
    confusion_figure(models, labels, paths[3], title="Confusion, test split")


def release_info(
    study: Study,
    judged: Judged,
    metrics: Mapping[str, Any],
    fingerprint: str,
    provenance: Mapping[str, Any],
    domain: str | None = None,
) -> ReleaseInfo:
    """What the release says of itself."""
    models = {
        kind: ModelInfo(
            file=file,
            temperature=judged.temperatures[kind],
            threshold=judged.points[kind].threshold,
            rule=judged.points[kind].rule,
            engines=judged.engines[kind],
        )
        for kind, file in MODELS.items()
    }
    return ReleaseInfo(
        format=1,
        study=study.name,
        question=study.question,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=study.data.task,
        labels=study.data.labels,
        prepare=study.prepare,
        chain_fingerprint=fingerprint,
        models=models,
        domain=domain,
        gate=metrics["gate"],
        figures={key: metrics[key] for key in ("test", "sites", "latency_ms", "size_bytes", "confidence")},
        provenance=dict(provenance),
    )

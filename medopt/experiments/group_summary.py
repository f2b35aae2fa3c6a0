"""What a group of runs says together: tables, figures and metrics of the mean, in its folder and its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medopt.config import Study
from medopt.core.files import write_columns, write_json
from medopt.core.records import KINDS, Estimate, Predictions, Task
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.evaluation.run_averages import FigureSpread, mean_figures, out_of_fold, pooled_figures
from medopt.experiments.run_group import RunGroup
from medopt.figures.comparison import forest_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED, Calibration
from medopt.metrics.thresholds import OperatingPoint
from medopt.report.markdown_summary import members_page

TOLD = ("auc", "average_precision", "accuracy", "sensitivity", "specificity")
CAPTION = "Bars: patient-cluster bootstrap. That of the mean scores the same patients by every member; it does not\n"
CAPTION += "cover what another seed would change, which the members' own dots show."
CHOSEN = "each member's best epoch and calibration were chosen on the fold that it predicts, so these figures flatter"


def member_name(study: Study) -> str:
    """`seed 1`, or `seed 1, fold 0`."""
    return f"seed {study.seed}" + (f", fold {study.data.fold}" if study.data.folds else "")


def record_group(
    study: Study, members: Sequence[Study], summaries: Sequence[Mapping[str, Any]], group: RunGroup
) -> dict[str, Any]:
    """Write members.csv, metrics.json, the forest plot and, with folds, out_of_fold.csv; log all of it; the metrics."""
    folder, options = group.folder.path, _options(study)
    tables = [{table.model: table for table in read_predictions(_predictions(one))} for one in summaries]
    scored = {kind: [_scored(study, t[kind], s) for t, s in zip(tables, summaries, strict=True)] for kind in KINDS}
    test = {kind: mean_figures([_part(one, "test") for one in scored[kind]], **options) for kind in KINDS}
    metrics: dict[str, Any] = {
        "study": study.name,
        "seeds": sorted({member.seed for member in members}),
        "folds": members[0].data.folds,
        "members": [_member(*pair) for pair in zip(members, summaries, strict=True)],
        "test": {kind: {name: one.as_dict() for name, one in test[kind].items()} for kind in KINDS},
        "sites": _sites(scored, options),
        "cases": len(_part(scored["float"][0], "test").predictions),
        "confidence": study.evaluation.confidence,
        "data_notes": sorted({note for one in summaries for note in one.get("data_notes", [])}),
        "mlflow_run_id": group.parent.run_id,
    }
    files = {
        folder / "metrics.json": "",
        folder / "members.csv": "tables",
        folder / "figures" / "members.png": "figures",
    }
    if members[0].data.folds:
        pooled = {kind: _pooled(tables, summaries, kind, study.data.task) for kind in KINDS}
        metrics["out_of_fold"] = {
            kind: {
                name: one.as_dict() for name, one in pooled_figures(pooled[kind], study.data.task, **options).items()
            }
            for kind in KINDS
        } | {"note": CHOSEN}
        path = folder / "out_of_fold.csv"
        plain = dict.fromkeys(KINDS, UNCALIBRATED)
        write_predictions(path, list(pooled.values()), study.data.labels, study.data.task, plain)
        files[path] = "tables"
    write_json(folder / "metrics.json", metrics)
    columns = _columns(members, summaries)
    write_columns(folder / "members.csv", columns)
    _draw(members, summaries, test, folder / "figures" / "members.png", study)
    group.parent.log_figures(_logged(metrics))
    group.parent.describe(members_page(study.question, metrics))
    group.parent.log_table(columns, "members.json")
    group.parent.log_files(files)
    return metrics | {"folder": str(folder), "mlflow_link": group.parent.link}


def _options(study: Study) -> dict[str, Any]:
    return {
        "bootstrap": study.evaluation.bootstrap,
        "confidence": study.evaluation.confidence,
        "seed": study.seed,
    }


def _predictions(summary: Mapping[str, Any]) -> Path:
    return Path(summary["folder"]) / "predictions.csv"


def _scored(study: Study, table: Predictions, summary: Mapping[str, Any]) -> CalibratedPredictions:
    """A member's predictions as its run read them: with the calibration and operating point that it chose."""
    point = OperatingPoint.from_dict(summary["operating_point"][table.model])
    return CalibratedPredictions(table, study.data.task, _calibration(summary, table.model), point)


def _calibration(summary: Mapping[str, Any], kind: str) -> Calibration:
    return Calibration.from_dict(summary["calibration"][kind])


def _part(scored: CalibratedPredictions, split: str, site: str | None = None) -> CalibratedPredictions:
    table = scored.predictions
    mask = table.split == split
    if site is not None:
        mask &= table.site == site
    return scored.where(mask)


def _sites(scored: Mapping[str, Sequence[CalibratedPredictions]], options: Mapping[str, Any]) -> dict[str, Any]:
    """The mean AUC at each site of the test split."""
    names = np.unique(_part(scored["float"][0], "test").predictions.site).tolist()
    return {
        site: {
            kind: mean_figures([_part(one, "test", site) for one in scored[kind]], **options)["auc"].as_dict()
            for kind in KINDS
        }
        for site in names
    }


def _pooled(
    tables: Sequence[Mapping[str, Predictions]], summaries: Sequence[Mapping[str, Any]], kind: str, task: Task
) -> Predictions:
    parts = [table[kind].of_split("val") for table in tables]
    return out_of_fold(parts, [_calibration(summary, kind) for summary in summaries], task)


def _member(study: Study, summary: Mapping[str, Any]) -> dict[str, Any]:
    where = {key: summary[key] for key in ("folder", "mlflow_run_id")}
    passed = summary["gate"]["passed"]
    return {"seed": study.seed, "fold": study.data.fold if study.data.folds else None} | where | {"gate_passed": passed}


def _columns(members: Sequence[Study], summaries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A row for each member: seed, fold, its own figures on validation and test, its folder."""
    columns: dict[str, list[Any]] = {"seed": [study.seed for study in members]}
    if members[0].data.folds:
        columns["fold"] = [study.data.fold for study in members]
    for kind in KINDS:
        columns[f"validation_auc_{kind}"] = [one["validation"][kind]["auc"]["value"] for one in summaries]
        for name in TOLD:
            columns[f"test_{name}_{kind}"] = [one["test"][kind][name]["value"] for one in summaries]
    columns["gate_passed"] = [one["gate"]["passed"] for one in summaries]
    columns["folder"] = [Path(one["folder"]).name for one in summaries]
    return columns


def _draw(
    members: Sequence[Study],
    summaries: Sequence[Mapping[str, Any]],
    test: Mapping[str, Mapping[str, FigureSpread]],
    path: Path,
    study: Study,
) -> None:
    names = [member_name(one) for one in members]
    panels = {
        f"test {name}, {kind}": ([Estimate(**one["test"][kind][name]) for one in summaries], test[kind][name].mean)
        for name in ("auc", "accuracy")
        for kind in KINDS
    }
    title = f"{study.name}: {len(members)} runs and their mean ({study.evaluation.confidence:.0%} intervals)"
    forest_figure(names, panels, path, title=title, caption=CAPTION)


def _logged(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The group's figures as MLflow groups them: test_float/auc, test_float/auc_low, test_float/auc_sd ..."""

    def row(one: Mapping[str, Any]) -> dict[str, Any]:
        mean = one.get("mean", one)
        found = {"value": mean["value"], "low": mean["low"], "high": mean["high"]}
        return found | {key: one[key] for key in ("sd", "least", "most") if key in one}

    kinds = {
        name: {kind: {figure: row(one) for figure, one in metrics[name][kind].items()} for kind in KINDS}
        for name in ("test", "out_of_fold")
        if name in metrics
    }
    sites = {site: {kind: {"auc": row(found[kind])} for kind in KINDS} for site, found in metrics["sites"].items()}
    return kinds | {"sites": sites}

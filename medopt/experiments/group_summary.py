"""What a group of runs says together: tables, figures and metrics of the mean, in its folder and its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medopt.config import Study
from medopt.core.files import write_columns
from medopt.core.records import KINDS, Estimate, Kind, Predictions, Task
from medopt.core.result import ByKind, by_kind
from medopt.evaluation.evaluate import resampling
from medopt.evaluation.group_metrics import FigureSpread, GroupMember, GroupMetrics, OutOfFold
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.evaluation.run_averages import mean_figures, out_of_fold, pooled_figures
from medopt.evaluation.run_metrics import METRICS_FILE, RunMetrics
from medopt.experiments.run_group import RunGroup
from medopt.figures.comparison import forest_figure
from medopt.metrics.bootstrap import Resampling
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.metrics.figures import HEADLINE, RATES, REPORTED
from medopt.pipeline.finished_run import FinishedRun
from medopt.report.markdown_summary import members_page

CAPTION = "Bars: as in the tables. That of the mean scores the same patients by every member; it does not\n"
CAPTION += "cover what another seed would change, which the members' own dots show."
OUT_OF_FOLD_NOTE = (
    "each member's calibration, and its epoch where the schedule is not annealed, were chosen on the fold that it "
    "predicts, so these figures flatter"
)


def member_name(study: Study) -> str:
    """`seed 1`, or `seed 1, fold 0`."""
    return f"seed {study.seed}" + (f", fold {study.data.fold}" if study.data.folds else "")


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    """A group of runs at its end: the means of its members, its folder, and its place in MLflow."""

    metrics: GroupMetrics
    folder: Path
    mlflow_link: str
    ensemble: FinishedRun | None = None

    def summary(self) -> dict[str, Any]:
        """All of it as JSON: the values of the group's `metrics.json` with folder and link, and the ensemble's."""
        values = self.metrics.json_values() | {"folder": str(self.folder), "mlflow_link": self.mlflow_link}
        return values | ({"ensemble": self.ensemble.summary()} if self.ensemble else {})


def record_group(study: Study, members: Sequence[Study], runs: Sequence[FinishedRun], group: RunGroup) -> FinishedGroup:
    """Write members.csv, metrics.json, the forest plot and, with folds, out_of_fold.csv, and log all of it."""
    folder, options = group.folder.path, resampling(study.evaluation, study.seed)
    tables = [{table.model: table for table in read_predictions(run.folder / "predictions.csv")} for run in runs]
    scored = by_kind(
        lambda kind: [_scored(study, t[kind], run.metrics, kind) for t, run in zip(tables, runs, strict=True)]
    )
    test = by_kind(lambda kind: mean_figures([_part(one, "test") for one in scored[kind]], **options))
    files = {
        folder / METRICS_FILE: "",
        folder / "members.csv": "tables",
        folder / "figures" / "members.png": "figures",
    }
    pooled_metrics = None
    if members[0].data.folds:
        pooled = by_kind(lambda kind: _pooled(tables, runs, kind, study.data.task))
        pooled_metrics = OutOfFold(
            float=pooled_figures(pooled.float, study.data.task, **options),
            int8=pooled_figures(pooled.int8, study.data.task, **options),
            note=OUT_OF_FOLD_NOTE,
        )
        path = folder / "out_of_fold.csv"
        plain = dict.fromkeys(map(str, KINDS), UNCALIBRATED)
        write_predictions(
            path, [pooled[kind] for kind in KINDS], study.data.labels, study.data.task, plain, study.number_scale
        )
        files[path] = "tables"
    metrics = GroupMetrics(
        study=study.name,
        seeds=tuple(sorted({member.seed for member in members})),
        folds=members[0].data.folds,
        members=tuple(_member(*pair) for pair in zip(members, runs, strict=True)),
        test=test,
        sites=_sites(scored, options),
        cases=len(_part(scored.float[0], "test").predictions),
        confidence=study.evaluation.confidence,
        data_notes=tuple(sorted({note for run in runs for note in run.metrics.data_notes})),
        mlflow_run_id=group.parent.run_id,
        out_of_fold=pooled_metrics,
    )
    metrics.write(folder / METRICS_FILE)
    columns = _columns(members, runs)
    write_columns(folder / "members.csv", columns)
    _draw(members, runs, test, folder / "figures" / "members.png", study)
    group.parent.log_figures(_logged(metrics))
    group.parent.describe(members_page(study.question, metrics))
    group.parent.log_table(columns, "members.json")
    group.parent.log_files(files)
    return FinishedGroup(metrics, folder, group.parent.link)


def _scored(study: Study, table: Predictions, metrics: RunMetrics, kind: Kind) -> CalibratedPredictions:
    """A member's predictions as its run read them: with the calibration and operating point that it chose."""
    calibration, point = metrics.calibration[kind].calibration, metrics.operating_point[kind]
    return CalibratedPredictions(table, study.data.task, calibration, point)


def _part(scored: CalibratedPredictions, split: str, site: str | None = None) -> CalibratedPredictions:
    table = scored.predictions
    mask = table.split == split
    if site is not None:
        mask &= table.site == site
    return scored.where(mask)


def _sites(scored: ByKind[list[CalibratedPredictions]], options: Resampling) -> dict[str, ByKind[FigureSpread]]:
    """The mean AUC at each site of the test split."""

    def at(site: str) -> ByKind[FigureSpread]:
        return by_kind(lambda kind: mean_figures([_part(one, "test", site) for one in scored[kind]], **options)["auc"])

    return {site: at(site) for site in np.unique(_part(scored.float[0], "test").predictions.site).tolist()}


def _pooled(
    tables: Sequence[Mapping[str, Predictions]], runs: Sequence[FinishedRun], kind: Kind, task: Task
) -> Predictions:
    parts = [table[kind].of_split("val") for table in tables]
    return out_of_fold(parts, [run.metrics.calibration[kind].calibration for run in runs], task)


def _member(study: Study, run: FinishedRun) -> GroupMember:
    return GroupMember(
        seed=study.seed,
        fold=study.data.fold if study.data.folds else None,
        folder=str(run.folder),
        mlflow_run_id=run.metrics.mlflow_run_id,
        gate_passed=run.metrics.gate.passed,
        outcome=run.metrics.outcome,
        better_than_chance=run.metrics.verdict.better_than_chance if run.metrics.verdict else None,
    )


def _columns(members: Sequence[Study], runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """A row for each member: seed, fold, its own figures on validation and test, its folder."""
    columns: dict[str, list[Any]] = {"seed": [study.seed for study in members]}
    if members[0].data.folds:
        columns["fold"] = [study.data.fold for study in members]
    for kind in KINDS:
        columns[f"validation_auc_{kind}"] = [run.metrics.validation[kind].auc.value for run in runs]
        for name in HEADLINE:
            columns[f"test_{name}_{kind}"] = [run.metrics.test[kind][name].value for run in runs]
    columns["gate_passed"] = [run.metrics.gate.passed for run in runs]
    columns["outcome"] = [run.metrics.outcome for run in runs]
    columns["folder"] = [run.folder.name for run in runs]
    return columns


def _draw(
    members: Sequence[Study],
    runs: Sequence[FinishedRun],
    test: ByKind[dict[str, FigureSpread]],
    path: Path,
    study: Study,
) -> None:
    names = [member_name(one) for one in members]
    panels = {
        f"test {name}, {kind}": ([run.metrics.test[kind][name] for run in runs], test[kind][name].mean)
        for name in ("auc", "accuracy")
        for kind in KINDS
    }
    title = f"{study.name}: {len(members)} runs and their mean ({study.evaluation.confidence:.0%} intervals)"
    forest_figure(names, panels, path, title=title, caption=CAPTION)


def _logged(metrics: GroupMetrics) -> dict[str, object]:
    """The group's figures as MLflow groups them: test_float/auc, test_float/auc_low, test_float/auc_sd ..."""

    def limits(estimate: Estimate) -> dict[str, float | None]:
        return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

    def spread(figure: FigureSpread) -> dict[str, float | None]:
        return limits(figure.mean) | {"sd": figure.sd, "least": figure.least, "most": figure.most}

    test = {kind: {name: spread(one) for name, one in metrics.test[kind].items() if name in REPORTED} for kind in KINDS}
    sites = {site: {kind: {"auc": spread(one[kind])} for kind in KINDS} for site, one in metrics.sites.items()}
    headline = {f"{name}_test": metrics.test.float[name].mean.value for name in RATES}
    headline |= {f"{name}_test_int8": metrics.test.int8[name].mean.value for name in RATES}
    figures: dict[str, object] = {"headline": headline, "test": test, "sites": sites}
    if pooled := metrics.out_of_fold:
        figures["out_of_fold"] = {
            kind: {name: limits(one) for name, one in dict(pooled[kind]).items() if name in REPORTED} for kind in KINDS
        }
    return figures

"""What a sweep found: its table, its picture and a study file of the best trial, in its folder and its MLflow run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medopt.config import Study
from medopt.config.study_file import find_manifest, load_study
from medopt.core.files import write_columns, write_text
from medopt.evaluation.sweep_summary import SweepEpochs, SweepSummary, SweepTrial
from medopt.experiments.optuna_store import Trials
from medopt.experiments.run_group import RunGroup
from medopt.experiments.search_space import Sweep
from medopt.figures.tuning import sweep_figure
from medopt.report.markdown_summary import sweep_page

FLATTERS = "the best of many trials looks too good on validation; the test split was not used"


@dataclass(frozen=True, slots=True)
class FinishedSweep:
    """A sweep at its end: its trials, its folder, and its place in MLflow."""

    sweep: SweepSummary
    folder: Path
    mlflow_link: str

    def summary(self) -> dict[str, Any]:
        """All of it as JSON: the values of `sweep.json` with folder and link."""
        return self.sweep.json_values() | {"folder": str(self.folder), "mlflow_link": self.mlflow_link}


def record_sweep(sweep: Sweep, trials: Trials, group: RunGroup, data: Path) -> FinishedSweep:
    """Write trials.csv, sweep.json, best.yaml and the picture, and log them."""
    folder, rows = group.folder.path, _rows(sweep, trials)
    complete = [row for row in rows if row.state == "complete"]
    best = max(complete, key=lambda row: row.score or 0.0, default=None)
    files = {folder / "trials.csv": "tables", folder / "figures" / "sweep.png": "figures", folder / "sweep.json": ""}
    best_study = command = ""
    if best is not None:
        path = folder / "best.yaml"
        _write_best(sweep, best.overrides, path, data)
        words = ["medopt", "run", str(path), "--data", str(data), "--runs", str(folder.parent.parent)]
        best_study, command = str(path), shlex.join(words)
        files[path] = ""
    summary = SweepSummary(
        study=sweep.study.name,
        metric=sweep.study.training.metric,
        trials=tuple(rows),
        counts={state: sum(row.state == state for row in rows) for state in ("complete", "pruned", "fail")},
        epochs=SweepEpochs(
            trained=sum(row.epochs for row in rows), without_pruning=len(rows) * sweep.study.training.epochs
        ),
        best=best,
        importance=trials.importances(),
        note=FLATTERS,
        mlflow_run_id=group.parent.run_id,
        best_study=best_study,
        command=command,
    )
    summary.write(folder / "sweep.json")
    columns = _columns(sweep, rows)
    write_columns(folder / "trials.csv", columns)
    _draw(sweep, rows, folder / "figures" / "sweep.png")
    group.parent.log_figures(_logged(summary))
    group.parent.describe(sweep_page(sweep.study.question, summary))
    group.parent.log_table(columns, "trials.json")
    group.parent.log_files(files)
    return FinishedSweep(summary, folder, group.parent.link)


def _rows(sweep: Sweep, trials: Trials) -> list[SweepTrial]:
    rows = []
    for trial in trials.begun():
        state = trial.state.name.lower()
        rows.append(
            SweepTrial(
                trial=trial.number,
                state=state,
                score=trial.value if state == "complete" else None,
                epochs=max(trial.intermediate_values, default=0),
                values={one.path: trial.params.get(one.path) for one in sweep.space},
                overrides=tuple(trials.overrides(trial)),
                folder=trial.user_attrs.get("folder", ""),
                reason=trial.user_attrs.get("reason", ""),
            )
        )
    return rows


def _write_best(sweep: Sweep, overrides: Sequence[str], path: Path, data: Path) -> None:
    """The best trial's study, whole: it runs from where it stands, and finds the training of its trial done."""
    study: Study = load_study(sweep.study_file, [*sweep.overrides, *overrides])
    raw = study.model_dump(mode="json")
    manifest = find_manifest(study, sweep.study_file, data)
    if manifest.resolve() != (data / study.data.manifest).resolve():
        raw["data"]["manifest"] = str(manifest.resolve())
    told = f"# The best of a sweep over {sweep.study_file.name}: {', '.join(overrides)}\n"
    write_text(path, told + yaml.safe_dump(raw, sort_keys=False))


def _columns(sweep: Sweep, rows: Sequence[SweepTrial]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in ("trial", "state", "score", "epochs")
    }
    columns |= {one.path: [row.values[one.path] for row in rows] for one in sweep.space}
    columns["folder"] = [Path(row.folder).name for row in rows]
    return columns


def _draw(sweep: Sweep, rows: Sequence[SweepTrial], path: Path) -> None:
    values = {one.path: [row.values[one.path] for row in rows] for one in sweep.space}
    sweep_figure(
        [row.score for row in rows],
        values,
        path,
        log=[one.path for one in sweep.space if one.is_log],
        score="validation AUC" if sweep.study.training.metric == "auc" else "negative validation loss",
        title=f"{sweep.study.name}: {len(rows)} trials",
    )


def _logged(summary: SweepSummary) -> dict[str, object]:
    best = {} if summary.best is None else {"score": summary.best.score, "trial": summary.best.trial}
    epochs = {"trained": summary.epochs.trained, "without_pruning": summary.epochs.without_pruning}
    return {"best": best, "trials": summary.counts, "epochs": epochs, "importance": summary.importance}

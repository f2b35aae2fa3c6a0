"""Runs compared on the cases that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medopt.core.errors import ConfigError, DataError
from medopt.core.records import Split
from medopt.evaluation.comparison import Comparison, compare_models, on_shared_cases
from medopt.evaluation.evaluate import resampling
from medopt.evaluation.predictions_io import UNNAMED
from medopt.evaluation.run_metrics import METRICS_FILE, RunMetrics
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.pipeline.reevaluate import TABLE, OpenTable, open_table, scored_of


def compare_runs(
    paths: Sequence[Path], models: Sequence[str] | None = None, split: Split = "test", *, shared: bool = False
) -> Comparison:
    """Every run (a folder or a prediction table) against the first, on the cases of one split that they share.

    `models` None: the int8 model of several runs (or the only one), all models of a single one. Each is read with the
    calibration and the operating point of its own validation rows. Raises DataError, ConfigError.
    """
    opened = [open_table(path) for path in paths]
    named = {tuple(table.labels) for table in opened} - {UNNAMED}
    if len({table.task for table in opened}) > 1 or len(named) > 1:
        asked = (f"{path}: {one.task} of {', '.join(one.labels)}" for path, one in zip(paths, opened, strict=True))
        raise DataError(f"The runs do not answer the same question: {'; '.join(asked)}.")
    chosen = [(place, name) for place, table in enumerate(opened) for name in _models(table, models, len(opened))]
    if len(chosen) < 2:
        raise ConfigError("There is nothing to compare: give two runs or more, or a run that has several models.")
    titles = _titles(paths, chosen)
    found: dict[str, CalibratedPredictions] = {}
    for title, (place, name) in zip(titles, chosen, strict=True):
        table = next(one for one in opened[place].tables if one.model == name)
        scored, _ = scored_of(opened[place], table)
        found[title] = scored.where(scored.predictions.split == split)
    how = resampling(opened[0].settings, opened[0].seed)
    compared = compare_models(on_shared_cases(found, shared=shared), how, split)
    runs = _titles(paths, [(place, "") for place in range(len(paths))])
    return compared.model_copy(update={"verdicts": tuple(_against(dict(zip(runs, paths, strict=True))))})


def _against(runs: Mapping[str, Path]) -> Iterator[str]:
    """What the verdicts of the runs among these folders and tables have against their models."""
    for name, path in runs.items():
        folder = path if path.is_dir() else path.parent
        if folder / TABLE not in (path, path / TABLE) or not (folder / METRICS_FILE).is_file():
            continue
        metrics = RunMetrics.read(folder)
        if not metrics.is_passed:
            yield f"{name}: {metrics.outcome}: {'; '.join(metrics.refusals)}"


def _models(table: OpenTable, names: Sequence[str] | None, runs: int) -> list[str]:
    known = [one.model for one in table.tables]
    if names:
        if missing := [name for name in names if name not in known]:
            raise DataError(f"{table.path} has no model {', '.join(missing)}; it has {', '.join(known)}.")
        return list(names)
    if runs == 1 or len(known) == 1:
        return known
    return ["int8"] if "int8" in known else known[:1]


def _titles(paths: Sequence[Path], chosen: Sequence[tuple[int, str]]) -> list[str]:
    """A short name for each model: its run's folder or table, and its own where several of a run are compared."""
    runs = [path.parent.name if path.name == "predictions.csv" and path.parent.name else path.stem for path in paths]
    if len(set(runs)) < len(runs):
        runs = [f"{place + 1}: {name}" for place, name in enumerate(runs)]
    several = len(chosen) > len(paths)
    return [f"{runs[place]} {model}" if several else runs[place] for place, model in chosen]

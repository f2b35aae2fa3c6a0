"""The stage `evaluate`: the test split, scored once, after everything was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.files import file_digest, write_json
from medopt.core.provenance import digest, machine, package_versions
from medopt.core.records import KINDS, SPLITS, Predictions
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.inference.engines import open_engine
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.metrics_json import FIGURES, draw_figures, summarize
from medopt.pipeline.predict import predict, subgroups
from medopt.pipeline.run_folder import INT8, RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.prepare import PreparedSplits, PrepareStage
from medopt.pipeline.stages.train import history_of
from medopt.training.job import PreparedSplit

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"


class EvaluateStage(Stage[NoResult]):
    """Predict validation and test with both models, and write predictions.csv, metrics.json and the pictures."""

    name = "evaluate"
    inputs = ("prepare", "judge")

    def depends_on(self, context: RunContext) -> Mapping[str, Any]:
        """The cases with their subgroups, the history, and who answers for a model that the gate refused."""
        return {
            "cases": context.cases.digest,
            "history": digest(history_of(context)),
            "run": context.tracker.origin,
            "notes": notes_of(context),
            "override": override_of(context),
        }

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """Tables and pictures."""
        return [folder.path / METRICS, folder.path / PREDICTIONS, *(folder.figures / f"{one}.png" for one in FIGURES)]

    def run(self, context: RunContext) -> NoResult:
        """Score the test split."""
        study, folder, gate_result = context.study, context.folder, context.result(JudgeStage)
        tables = predict_splits(study, context.result(PrepareStage), folder, gate_result)
        path = folder.path / PREDICTIONS
        write_predictions(path, tables, study.data.labels, study.data.task, dict(gate_result.calibrations))
        tables = read_predictions(path)  # every figure can be computed again from that file
        sizes = {kind: (folder.models / f"{kind}.onnx").stat().st_size for kind in KINDS}
        metrics = summarize(study, tables, gate_result, sizes)
        metrics["gate"]["override"] = override_of(context)
        draw_figures(study, history_of(context), tables, gate_result, metrics, folder.figures)
        run = {"study": study.name, "seed": study.seed, "mlflow_run_id": context.tracker.run_id}
        where = {"data_notes": list(notes_of(context)), "machine": machine(), "packages": package_versions()}
        write_json(folder.path / METRICS, run | metrics | where)
        return NoResult()


def notes_of(context: RunContext) -> tuple[str, ...]:
    """What a reader of the figures has to know: how the models came about, and what was accepted of the data."""
    return (*context.notes, *context.result(PrepareStage).notes)


def override_of(context: RunContext) -> dict[str, str] | None:
    """Who releases what the gate refused. It holds for the model that it was given for, and for no later one."""
    given: dict[str, str] | None = context.folder.facts().get("override")
    if given is None or context.result(JudgeStage).verdict.passed:
        return None
    model = file_digest(context.folder.models / INT8)
    bound = {"model": model} | given
    if bound["model"] != model:
        context.say(f"{given['by']} released another model of this run, not this one")
        return None
    if bound != given:
        context.folder.write_facts(override=bound)
    return bound


def predict_splits(
    study: Study, splits: PreparedSplits, folder: RunFolder, gate_result: GateResult
) -> list[Predictions]:
    """Validation and test predictions of both models, each in the engine that will serve it."""
    tables, parts = [], [splits[split] for split in SPLITS[1:]]
    groups = subgroups(
        PreparedSplit([c for part in parts for c in part.cases], [f for part in parts for f in part.files])
    )
    for kind in KINDS:
        engine = open_engine(gate_result.engines[kind][0], folder.models / f"{kind}.onnx", study.compression.cores)
        predicted = [predict(study, kind, split, splits[split], engine) for split in SPLITS[1:]]
        tables.append(replace(Predictions.joined(kind, predicted), subgroups=groups))
    return tables


def test_split_predictions(context: RunContext) -> dict[str, Predictions]:
    """Each model's predictions of the test split, in the order of its images."""
    return {table.model: table.of_split("test") for table in read_predictions(context.folder.path / PREDICTIONS)}

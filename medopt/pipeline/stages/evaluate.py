"""The stage `evaluate`: the test split, scored once, after everything was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from medopt.config import Study
from medopt.core.files import file_digest
from medopt.core.provenance import digest
from medopt.core.records import KINDS, SPLITS, Override, Predictions
from medopt.core.result import by_kind
from medopt.evaluation.analysis_results import BaselinesResult
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.evaluation.run_metrics import METRICS_FILE, KeptWeights
from medopt.evaluation.shortcuts import NAME, shortcut_text
from medopt.inference.engines import open_engine
from medopt.pipeline.covariate_terms import covariate_logits, read_terms
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.metrics_json import FIGURES, draw_figures, summarize
from medopt.pipeline.predict import predict, subgroups
from medopt.pipeline.run_folder import INT8, RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.pipeline.stage_settings import stage_names
from medopt.pipeline.stages.baseline import BASELINES, IMAGE, BaselineStage, baselines_result
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.prepare import PreparedSplits, PrepareStage
from medopt.pipeline.stages.train import LINEAR, TrainStage, history_of
from medopt.training.job import PreparedSplit

PREDICTIONS = "predictions.csv"
BASELINES_JSON = "baselines.json"
ANALYSIS_FILES = {"robustness": "robustness.json", "explain": "explanations.json", "domain": "domain.json"}


class EvaluateStage(Stage[NoResult]):
    """Predict validation and test with both models, and write predictions.csv, metrics.json and the pictures."""

    name = "evaluate"
    revision = 4  # the guarantee
    inputs = ("prepare", "judge")

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The cases with their subgroups, the history, and who overrode a verdict."""
        override = override_of(context)
        return {
            "cases": context.cases.digest,
            "history": digest(history_of(context)),
            "run": context.tracker.origin,
            "notes": notes_of(context),
            "override": asdict(override) if override else None,
            "baseline": context.digests.get(BaselineStage.name, ""),
        }

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """Tables and pictures."""
        return [
            folder.path / METRICS_FILE,
            folder.path / PREDICTIONS,
            folder.path / BASELINES_JSON,
            *(folder.figures / f"{one}.png" for one in FIGURES),
        ]

    def run(self, context: RunContext) -> NoResult:
        """Score the test split."""
        study, folder, gate_result = context.study, context.folder, context.result(JudgeStage)
        tables = predict_splits(study, context.result(PrepareStage), folder, gate_result)
        path = folder.path / PREDICTIONS
        write_predictions(
            path, tables, study.data.labels, study.data.task, dict(gate_result.calibrations), study.number_scale
        )
        tables = read_predictions(path)  # every figure can be computed again from that file
        baselines = _baselines(context, tables)
        metrics = summarize(
            study,
            tables,
            gate_result,
            by_kind(lambda kind: (folder.models / f"{kind}.onnx").stat().st_size),
            override=override_of(context),
            baselines=baselines,
            kept_weights=_kept(context),
            terms=read_terms(study, folder.models),
            mlflow_run_id=context.tracker.run_id,
            data_notes=notes_of(context),
        )
        draw_figures(study, history_of(context), tables, gate_result, metrics, folder.figures)
        metrics.write(folder.path / METRICS_FILE)
        if baselines:
            baselines.write(folder.path / BASELINES_JSON)
        else:
            (folder.path / BASELINES_JSON).unlink(missing_ok=True)
        return NoResult()

    def finish(self, context: RunContext, result: NoResult, *, skipped: bool) -> None:
        """Remove what an earlier run of this folder measured and the study does not ask for any more."""
        for stage, name in ANALYSIS_FILES.items():
            if stage not in stage_names(context.study):
                (context.folder.path / name).unlink(missing_ok=True)


def _baselines(context: RunContext, tables: Sequence[Predictions]) -> BaselinesResult | None:
    """The linear models beside the float network on the test split; an ensemble has none of its own."""
    if BaselineStage.name not in context.results:
        return None
    fitted, trained = context.result(BaselineStage), context.result(TrainStage)
    network = next(table for table in tables if table.model == "float").of_split("test")
    linear = {table.model: table.of_split("test") for table in read_predictions(context.folder.path / BASELINES)}
    compared = baselines_result(context.study, network, linear, fitted, _without_covariates(context, network))
    return compared.model_copy(update={"linear_goes_on": trained.best_epoch == LINEAR})


def _without_covariates(context: RunContext, network: Predictions) -> Predictions | None:
    """The float network's predictions of the test split from the image alone; None where it sees nothing else."""
    if (terms := read_terms(context.study, context.folder.models)) is None:
        return None
    added = covariate_logits(context.study, terms.float, context.result(PrepareStage)["test"].cases)
    return replace(network, model=IMAGE, logits=network.logits - added)


def _kept(context: RunContext) -> KeptWeights | None:
    """Which weights training kept; None of an ensemble, and where version 0.1.0 trained and did not say why."""
    trained = context.results.get(TrainStage.name)
    if trained is None or not trained.reason:
        return None
    epoch = None if trained.best_epoch == LINEAR else trained.best_epoch + 1
    return KeptWeights(epoch=epoch, epochs=len(trained.history), reason=trained.reason)


def notes_of(context: RunContext) -> tuple[str, ...]:
    """What a reader of the figures has to know: how the models came about, and what was accepted of the data."""
    notes = (*context.notes, *context.result(PrepareStage).notes)
    if BaselineStage.name not in context.results or not (found := context.result(BaselineStage).shortcuts):
        return notes
    text = shortcut_text(found)
    return (*notes, f"{NAME}: {text}") if text else notes


def override_of(context: RunContext) -> Override | None:
    """Who overrode a verdict. An override holds for the model that it was given for, and for no later one."""
    recorded = context.folder.facts().get("override")
    if recorded is None:
        return None
    override, model = Override(**recorded), file_digest(context.folder.models / INT8)
    if override.model not in ("", model):
        context.say(f"{override.by} released another model of this run, not this one")
        return None
    bound = replace(override, model=model)
    if bound != override:
        context.folder.write_facts(override=asdict(bound))
    return bound


def predict_splits(
    study: Study, splits: PreparedSplits, folder: RunFolder, gate_result: GateResult
) -> list[Predictions]:
    """Validation and test predictions of both models, each in the engine that will serve it."""
    tables, parts, terms = [], [splits[split] for split in SPLITS[1:]], read_terms(study, folder.models)
    groups = subgroups(
        PreparedSplit([c for part in parts for c in part.cases], [f for part in parts for f in part.files])
    )
    for kind in KINDS:
        engine = open_engine(gate_result.engines[kind][0], folder.models / f"{kind}.onnx", study.compression.cores)
        term = terms[kind] if terms else None
        predicted = [predict(study, kind, split, splits[split], engine, term) for split in SPLITS[1:]]
        tables.append(replace(Predictions.joined(kind, predicted), subgroups=groups))
    return tables


def test_split_predictions(context: RunContext) -> dict[str, Predictions]:
    """Each model's predictions of the test split, in the order of its images."""
    return {table.model: table.of_split("test") for table in read_predictions(context.folder.path / PREDICTIONS)}

"""`medopt compress`: a run's network in several widths and precisions, what each costs, and a release of the best.

It stands in the folder `compressed` of the run and goes on where it was. All is chosen on validation; the test split
is looked at once, for the one that was chosen.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medopt.compression.gate import TOO_FEW
from medopt.compression.pareto import Rule, on_front, pick, reasons_against
from medopt.config import Study
from medopt.core.errors import ConfigError, ReleaseRefused
from medopt.core.files import file_digest
from medopt.core.provenance import digest
from medopt.core.records import Override
from medopt.core.reporter import Reporter
from medopt.evaluation.compression_front import CompressionFront, CompressionOption, Precision
from medopt.experiments.compression_candidates import Width, file_of, measure_options, write_options
from medopt.figures.pareto import front_figure
from medopt.models.cost import multiply_adds
from medopt.pipeline.covariate_terms import TERMS, write_terms
from medopt.pipeline.finished_run import FinishedRun
from medopt.pipeline.run import complete_run, opened_run, stages_of_models
from medopt.pipeline.run_folder import FLOAT, NARROW, QUANTIZED, RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.pipeline.stage_settings import settings_of
from medopt.pipeline.stages.compress import calibration_files, write_pruning
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.pipeline.stages.prune import PruneStage, pruning_stages, steps_to
from medopt.pipeline.study_cases import read_run
from medopt.tracking.parent import ParentRun
from medopt.training.hardware import Hardware
from medopt.training.loop import load_best
from medopt.training.prior_shift import prior_shift

PLACE, TABLE, PICTURE, OPTIONS = "compressed", "front.json", "front.png", "front"
_LABELS = {"name", "faults", "precision", "engine"}  # of an option: tags in MLflow, not figures


@dataclass(frozen=True, slots=True)
class CompressionGrid:
    """What is tried: shares of the multiply-adds to take away, precisions, and by which rule one is chosen."""

    removed: tuple[float, ...]
    precisions: tuple[Precision, ...]
    rule: Rule

    def __post_init__(self) -> None:
        if not all(0 <= share < 1 for share in self.removed) or "int8" not in self.precisions:
            raise ConfigError("--prune takes shares from 0 to below 1, and --precision must name int8.")

    def shares(self) -> list[float]:
        """The whole network first, then ever narrower ones."""
        return sorted({0.0, *self.removed})

    def steps(self, study: Study) -> list[PruneStage]:
        """The network at every width, each going on from the one before; a single width in the study's steps."""
        shares = self.shares()[1:]
        targets = steps_to(shares[0], study.compression.pruning.steps) if len(shares) == 1 else shares
        return pruning_stages(targets)


def compress_run(
    folder: Path,
    grid: CompressionGrid,
    data: Path,
    reporter: Reporter,
    hardware: Hardware | None = None,
    override: Override | None = None,
) -> FinishedRun:
    """Try the grid on a finished run's network, and release what its rule picks.

    `folder` is the run's; what is made stands in its folder `compressed`, and below its run in MLflow. `override`
    releases the chosen model although a verdict did not pass it. Raises ReleaseRefused where the rule allows nothing.
    """
    base = RunFolder(folder.resolve(), False)
    cases, runs, parent = read_run(base.path, data), base.path.parents[1], str(base.facts().get("mlflow_run_id") or "")
    place, networks = base.path / PLACE, (base.best_weights,)
    with opened_run(
        cases,
        runs,
        reporter,
        parent=parent,
        place=place,
        networks=networks,
        hardware=hardware,
        override=override,
    ) as run:
        steps = grid.steps(run.study)
        measuring = MeasureStage(grid, steps)
        taking = TakeStage(grid, steps, covariates=bool(run.study.data.covariates))
        search: list[Stage[Any]] = [PrepareStage(), *steps, measuring, RecordOptionsStage(), taking]
        finished = complete_run(run, [*search, *stages_of_models(run.study)])
        return replace(finished, front=run.result(MeasureStage))


class MeasureStage(Stage[CompressionFront]):
    """Write every option's file, measure all of them in one go, and choose."""

    name = OPTIONS
    inputs = ("prepare",)
    result_type = CompressionFront

    def __init__(self, grid: CompressionGrid, steps: Sequence[PruneStage]) -> None:
        self.grid, self.steps = grid, steps

    def settings(self, study: Study) -> str:
        """Those of compressing and of judging."""
        return _settings(study, "seed", "model", "prepare", "data.task", "data.labels", "compression", "evaluation")

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The grid and the weights of every width."""
        weights = [context.networks[0], *(step.weights(context.folder) for step in self.steps)]
        return {"grid": asdict(self.grid), "weights": [file_digest(path) for path in weights]}

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The options' files, the table and the picture."""
        return [folder.path / OPTIONS, folder.path / TABLE, folder.figures / PICTURE]

    def run(self, context: RunContext) -> CompressionFront:
        """What each option costs and keeps, the front, and which one is chosen."""
        study, folder, rule = context.study, context.folder, self.grid.rule
        splits, place = context.result(PrepareStage), folder.path / OPTIONS
        place.mkdir(exist_ok=True)
        files, widths = calibration_files(study, splits), self._widths(context)
        for width in widths:
            write_options(study, width, files, place, self.grid.precisions)
            context.say(f"exported, {width.removed:.0%} of the multiply-adds taken away")
        shift = prior_shift(study, splits["train"].cases)
        options = measure_options(study, splits["val"], widths, self.grid.precisions, place, shift)
        chosen = pick(options, rule)
        front = CompressionFront(
            rule=rule.describe(),
            confidence=study.evaluation.confidence,
            validation_cases=len(splits["val"].cases),
            options=tuple(option.record for option in options),
            front=tuple(option.name for option in on_front(options)),
            chosen=chosen.name if chosen else None,
            against={option.name: tuple(why) for option in options if (why := reasons_against(option, rule))},
            torch_ms=options[0].torch_ms,
        )
        front.write(folder.path / TABLE)
        front_figure(
            front,
            folder.figures / PICTURE,
            title=f"{study.name}: accuracy against time and size",
            caption=f"Beside each int8 point the share of multiply-adds taken away. Chosen: {rule.describe()}.",
        )
        return front

    def _widths(self, context: RunContext) -> list[Width]:
        """The whole network, and those of the grid."""
        study, shares = context.study, self.grid.shares()
        size, channels, weights = study.prepare.size, study.prepare.input_channels, context.networks[0]
        whole = Width(0.0, weights, multiply_adds(load_best(study, weights), channels, size))
        reached = [
            Width(step.target, step.weights(context.folder), context.results[step.name].multiply_adds.pruned)
            for step in self.steps
            if step.target in shares
        ]
        return [whole, *reached]


class RecordOptionsStage(Stage[NoResult]):
    """Log each option as a run below this one in MLflow, and the table and the picture in this one."""

    name = "record-front"
    inputs = (OPTIONS,)

    def settings(self, study: Study) -> str:
        """The study's name."""
        return _settings(study, "name")

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The run above."""
        return {"run": context.tracker.origin}

    def run(self, context: RunContext) -> NoResult:
        """Raises ConfigError where the store does not answer."""
        study, folder, front = context.study, context.folder, context.result(MeasureStage)
        for option in front.options:
            tags = {
                "mlflow.parentRunId": context.tracker.run_id,
                "study": study.name,
                "kind": "compression",
                "precision": option.precision,
                "removed": f"{option.removed:g}",
                "engine": option.engine,
                "on_front": str(option.name in front.front),
                "chosen": str(option.name == front.chosen),
                "faults": "; ".join(option.faults)[:5000],
            }
            child = ParentRun(study, context.runs, None, f"{folder.path.parent.name} {option.name}", tags)
            figures = option.model_dump(mode="json", exclude_defaults=True, exclude=_LABELS)
            child.log_figures({"validation": figures})
            child.end("measured")
        context.tracker.log_files({"": folder.path / TABLE, "figures": folder.figures / PICTURE})
        return NoResult()


class TakeStage(Stage[NoResult]):
    """Take the chosen option's files as the run's models: what `compress` is to a run without a search."""

    name = "compress"
    inputs = ("prepare", OPTIONS)

    def __init__(self, grid: CompressionGrid, steps: Sequence[PruneStage], *, covariates: bool = False) -> None:
        self.grid, self.steps, self.covariates = grid, steps, covariates

    def settings(self, study: Study) -> str:
        """The study's name: all else stands in the table."""
        return _settings(study, "name")

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The ONNX files, and what covariates add to their logits."""
        return [folder.models / name for name in (FLOAT, QUANTIZED, NARROW, *([TERMS] if self.covariates else []))]

    def run(self, context: RunContext) -> NoResult:
        """Copy the files; raises ReleaseRefused where the rule allows no option."""
        chosen, models = self._chosen(context), context.folder.models
        models.mkdir(exist_ok=True)
        removed = chosen.removed
        options = [file_of(0, "float32"), file_of(removed, "int8"), file_of(removed, "float32")]
        for source, target in zip(options, (FLOAT, QUANTIZED, NARROW), strict=True):
            shutil.copyfile(context.folder.path / OPTIONS / source, models / target)
        pruned = [step.weights(context.folder) for step in self.steps if removed and step.target == removed]
        write_terms(context.study, [context.networks[0], *pruned], models)
        return NoResult()

    def finish(self, context: RunContext, result: NoResult, *, skipped: bool) -> None:
        """Say how the models came about."""
        removed = self._chosen(context).removed
        write_pruning(context, [step for step in self.steps if removed and step.target <= removed])
        count = len(context.result(MeasureStage).options)
        context.notes.append(f"chosen of {count} options by validation: {self.grid.rule.describe()}")

    def _chosen(self, context: RunContext) -> CompressionOption:
        """The option that the rule picked."""
        front = context.result(MeasureStage)
        if front.choice is not None:
            return front.choice
        reasons = "; ".join(f"{name}: {', '.join(why)}" for name, why in front.against.items())
        few = (
            " Where the cases are too few to tell, add validation patients, or set bounds that you can defend "
            "(compression.gate.auc_bound, compression.gate.flips_bound)."
        )
        raise ReleaseRefused(
            f"No option of {context.study.name} is {self.grid.rule.describe()}: {reasons}. The table is in "
            f"{context.folder.path / TABLE}. Prune less (--prune), train longer after each step "
            f"(compression.pruning.epochs), or allow more (--within).{few if TOO_FEW in reasons else ''}"
        )


def _settings(study: Study, *paths: str) -> str:
    return digest(settings_of(study, paths))

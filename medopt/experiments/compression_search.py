"""`medopt compress`: a run's network in several widths and precisions, what each costs, and a release of the best.

It stands in the folder `compressed` of the run and goes on where it was. All is chosen on validation; the test split
is looked at once, for the one that was chosen.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medopt.compression.pareto import Rule, on_front, pick, reasons_against
from medopt.compression.prune import multiply_adds
from medopt.core.errors import ConfigError, GateRefused
from medopt.core.files import write_json
from medopt.core.reporter import Reporter
from medopt.evaluation.compression_front import CompressionFront, CompressionOption, Precision
from medopt.experiments.compression_candidates import Width, file_of, measure_options, write_options
from medopt.figures.pareto import front_figure
from medopt.pipeline.judge import FLOAT, NARROW, QUANTIZED
from medopt.pipeline.pruning import RESULT as PRUNING
from medopt.pipeline.pruning import PrunedStep, prune_in_steps, steps_to
from medopt.pipeline.run import Run
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.runner import opened_run, outcome_of
from medopt.pipeline.stages import Sets, calibration_files
from medopt.pipeline.study_cases import read_run
from medopt.tracking.parent import ParentRun
from medopt.training.hardware import Hardware
from medopt.training.job import BEST
from medopt.training.loop import load_best

PLACE, TABLE, PICTURE = "compressed", "front.json", "front.png"


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


def compress_run(
    folder: Path, grid: CompressionGrid, data: Path, reporter: Reporter, hardware: Hardware | None = None
) -> dict[str, Any]:
    """Try the grid on a finished run's network, and release what its rule picks; the summary of a run.

    `folder` is the run's; what is made stands in its folder `compressed`, and below its run in MLflow.
    """
    folder = folder.resolve()
    source, base = read_run(folder, data), RunFolder(folder, False)
    runs = folder.parents[1]
    parent = str(base.facts().get("mlflow_run_id") or "")
    with opened_run(source, runs, reporter, parent=parent, place=folder / PLACE, hardware=hardware) as run:
        summary = run_front(run, folder, runs, grid)
        run.end(outcome_of(summary))
        return summary


def run_front(run: Run, base: Path, runs: Path, grid: CompressionGrid) -> dict[str, Any]:
    """Try the grid on the network of the run folder `base`, and release what the rule picks; the summary of a run.

    Raises GateRefused where the rule allows nothing.
    """
    run.log_start()
    sets, identity, notes = run.ready(runs)
    weights = base / "checkpoints" / BEST
    widths, steps = _narrowed(run, sets, weights, grid)
    told = {step.weights.parent.name: step.facts for step in steps}
    inputs = identity | {"pruned": told, "grid": asdict(grid)}
    place = run.folder.path / "front"
    outputs = [place, run.folder.path / TABLE, run.folder.path / "figures" / PICTURE]
    values = run.stage("front", inputs, outputs, lambda: _measured(run, sets, widths, grid, place).json_values())
    front = CompressionFront.model_validate(values)
    run.stage("record-front", {"front": values, "run": run.tracker.origin}, [], lambda: _recorded(run, runs, front))
    chosen = front.choice
    if chosen is None:
        reasons = "; ".join(f"{name}: {', '.join(why)}" for name, why in front.against.items())
        raise GateRefused(
            f"No option of {run.source.study.name} is {grid.rule.told()}: {reasons}. The table is in "
            f"{run.folder.path / TABLE}. Prune less (--prune), train longer after each step "
            "(compression.pruning.epochs), or allow more (--within)."
        )
    models = [run.folder.models / name for name in (FLOAT, QUANTIZED, NARROW)]

    def taking() -> dict[str, Any]:
        run.folder.models.mkdir(exist_ok=True)
        for source, target in zip(_files_of(chosen.removed), models, strict=True):
            shutil.copyfile(place / source, target)
        return {"chosen": chosen.name}

    run.stage("compress", {"front": values}, models, taking)
    if chosen.removed:
        write_json(run.folder.path / PRUNING, {name: one for name, one in told.items() if _is_before(one, chosen)})
    else:  # an earlier choice may have been another
        (run.folder.path / PRUNING).unlink(missing_ok=True)
    notes = [f"chosen of {len(front.options)} options by validation: {grid.rule.told()}", *notes]
    return run.judged_on(sets, identity | {"front": values}, [], notes, [weights]) | {"front": values}


def _is_before(step: Mapping[str, Any], chosen: CompressionOption) -> bool:
    return bool(step["target"] <= chosen.removed)


def _files_of(removed: float) -> list[str]:
    """What becomes float.onnx, quantized.onnx and pruned.onnx."""
    return [
        file_of(0, "float32"),
        file_of(removed, "int8"),
        file_of(removed, "float32"),
    ]


def _narrowed(run: Run, sets: Sets, weights: Path, grid: CompressionGrid) -> tuple[list[Width], list[PrunedStep]]:
    """The network at every width of the grid; each goes on from the one before."""
    study, wanted = run.source.study, run.source.study.compression.pruning
    shares = grid.shares()[1:]
    targets = steps_to(shares[0], wanted.steps) if len(shares) == 1 else shares
    steps = prune_in_steps(study, sets, weights, targets, run.folder, run.reporter, run.hardware) if targets else []
    size, channels = study.prepare.size, study.prepare.channels
    whole = Width(0.0, weights, multiply_adds(load_best(study, weights), channels, size))
    reached = [
        Width(target, step.weights, step.facts["multiply_adds"]["pruned"])
        for target, step in zip(targets, steps, strict=True)
        if target in shares
    ]
    return [whole, *reached], steps


def _measured(run: Run, sets: Sets, widths: Sequence[Width], grid: CompressionGrid, place: Path) -> CompressionFront:
    """Write every option's file, measure all of them in one go, and choose."""
    study, reporter = run.source.study, run.reporter
    place.mkdir(exist_ok=True)
    files = calibration_files(study, sets)
    for width in widths:
        write_options(study, width, files, place, grid.precisions)
        reporter.message(f"exported, {width.removed:.0%} of the multiply-adds taken away")
    options = measure_options(study, sets["val"], widths, grid.precisions, place)
    chosen = pick(options, grid.rule)
    front = CompressionFront(
        rule=grid.rule.told(),
        confidence=study.evaluation.confidence,
        validation_cases=len(sets["val"].cases),
        options=tuple(one.record for one in options),
        front=tuple(one.name for one in on_front(options)),
        chosen=chosen.name if chosen else None,
        against={one.name: tuple(why) for one in options if (why := reasons_against(one, grid.rule))},
        torch_ms=options[0].torch_ms,
    )
    front.write(run.folder.path / TABLE)
    front_figure(
        front,
        run.folder.path / "figures" / PICTURE,
        title=f"{study.name}: accuracy against time and size",
        caption=f"Beside each int8 point the share of multiply-adds taken away. Chosen: {grid.rule.told()}.",
    )
    return front


def _recorded(run: Run, runs: Path, front: CompressionFront) -> dict[str, Any]:
    """Each option as a run below this one in MLflow; the table and the picture in this one."""
    study = run.source.study
    for one in front.options:
        tags = {
            "mlflow.parentRunId": run.tracker.run_id,
            "study": study.name,
            "kind": "compression",
            "precision": one.precision,
            "removed": f"{one.removed:g}",
            "engine": one.engine,
            "on_front": str(one.name in front.front),
            "chosen": str(one.name == front.chosen),
            "faults": "; ".join(one.faults)[:5000],
        }
        child = ParentRun(study, runs, None, f"{run.folder.path.parent.name} {one.name}", tags)
        kept = one.model_dump(mode="json", exclude_defaults=True, exclude={"name", "faults", "precision", "engine"})
        child.log_figures({"validation": kept})
        child.end("measured")
    run.tracker.log_files({"": run.folder.path / TABLE, "figures": run.folder.path / "figures" / PICTURE})
    return {"options": len(front.options)}

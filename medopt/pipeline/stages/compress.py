"""The stage `compress`: the float ONNX file, and a static int8 one of the whole or of the pruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medopt.compression.export import export_onnx
from medopt.compression.quantize import choose_calibration, quantize_int8, refuse_overlap
from medopt.config import Study
from medopt.core.files import file_digest, write_json
from medopt.core.records import SPLITS
from medopt.data.cache import PreparedImages
from medopt.evaluation.analysis_results import PruningStep
from medopt.inference.engines import file_batches, load_batch
from medopt.pipeline.covariate_terms import TERMS, write_terms
from medopt.pipeline.run_folder import FLOAT, NARROW, QUANTIZED, RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages.prepare import PreparedSplits, PrepareStage
from medopt.pipeline.stages.prune import PruneStage
from medopt.training.loop import load_best

PRUNING = "pruning.json"


@dataclass(frozen=True, slots=True)
class Compressed:
    """The largest difference of a logit between torch and ONNX, and the prepared images of the calibration."""

    parity: float
    calibrated_on: tuple[str, ...]


class CompressStage(Stage[Compressed]):
    """Export the best weights to float ONNX, and quantize that to int8, calibrated on training images only.

    Where there are steps of pruning, int8 is made of the last one's weights, by way of models/pruned.onnx.
    """

    name = "compress"
    revision = 3  # averaged skips are convolutions
    inputs = ("prepare",)
    result_type = Compressed

    def __init__(self, pruning: Sequence[PruneStage] = (), *, covariates: bool = False) -> None:
        self.pruning, self.covariates = pruning, covariates

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The weights."""
        return {"weights": [file_digest(path) for path in self._weights(context)]}

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The ONNX files, and what covariates add to their logits."""
        more = [*([NARROW] if self.pruning else []), *([TERMS] if self.covariates else [])]
        return [folder.models / name for name in (FLOAT, QUANTIZED, *more)]

    def run(self, context: RunContext) -> Compressed:
        """Write the files; raises MedoptError where the exported network answers otherwise than torch."""
        study, folder, compression = context.study, context.folder, context.study.compression
        files = calibration_files(study, context.result(PrepareStage))
        parity, examples = 0.0, load_batch(files[next(file_batches(files, 8))])
        for weights, source in zip(self._weights(context), (FLOAT, NARROW), strict=False):
            network, path = load_best(study, weights), folder.models / source
            parity = max(parity, export_onnx(network, examples, path, compression.opset))
        quantize_int8(path, folder.models / QUANTIZED, PreparedImages(files), compression.profile)
        write_terms(study, self._weights(context), folder.models)
        size = " x ".join(map(str, study.prepare.size))
        context.reporter.message(
            f"exported (largest logit difference {parity:.1e}), int8 for {compression.profile} calibrated on "
            f"{len(files)} training images of {size}"
        )
        return Compressed(parity, tuple(file.name for file in files))

    def finish(self, context: RunContext, result: Compressed, *, skipped: bool) -> None:
        """Write and log what pruning came to."""
        steps = write_pruning(context, self.pruning)
        figures = {f"pruning {name}": step.model_dump(exclude={"widths"}) for name, step in steps.items()}
        if figures:
            context.say(context.tracker.log_early(figures))

    def _weights(self, context: RunContext) -> list[Path]:
        """Those of the whole network, and of the pruned one where there is one."""
        return [context.networks[0], *(stage.weights(context.folder) for stage in self.pruning[-1:])]


def write_pruning(context: RunContext, stages: Sequence[PruneStage]) -> dict[str, PruningStep]:
    """Write pruning.json, or remove it where nothing was pruned; returns the steps by name."""
    steps: dict[str, PruningStep] = {f"step-{stage.number}": context.results[stage.name] for stage in stages}
    path = context.folder.path / PRUNING
    if steps:
        write_json(path, {name: step.json_values() for name, step in steps.items()})
    else:
        path.unlink(missing_ok=True)
    return steps


def calibration_files(study: Study, splits: PreparedSplits) -> list[Path]:
    """The prepared training images that int8 is calibrated on: at random, none that validation or test has, too."""
    files, others = splits["train"].files, [file for split in SPLITS[1:] for file in splits[split].files]
    rows = choose_calibration(files, others, study.compression.calibration_images, study.seed)
    chosen = [files[row] for row in rows]
    refuse_overlap(chosen, others)
    return chosen

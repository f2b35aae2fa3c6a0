"""The stages `pruned-1`, `pruned-2`, ...: channels go, training goes on, and the same again from what came out.

Each step is a stage of its own with checkpoints of its own: a killed run goes on at the last whole epoch of its step.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from medopt.compression.prune import gradient_scores, prune_network
from medopt.compression.quantize import choose_calibration
from medopt.config import Schedule, Study
from medopt.core import signals
from medopt.core.files import file_digest
from medopt.core.provenance import digest
from medopt.data.loaders import predict_loader
from medopt.evaluation.analysis_results import ChannelCounts, MultiplyAdds, PruningAuc, PruningStep
from medopt.models import build_model
from medopt.models.channel_widths import WIDTHS, Widths
from medopt.models.cost import multiply_adds
from medopt.pipeline.predict import validation_score
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stage_settings import PRUNED
from medopt.pipeline.stages.prepare import PreparedSplits, PrepareStage
from medopt.pipeline.stages.tune import resolved_study
from medopt.training.checkpoint import read_tensors, write_tensors
from medopt.training.epoch import predict_logits
from medopt.training.hardware import Hardware, has_launcher, open_fabric
from medopt.training.job import BEST, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.loop import load_best
from medopt.training.losses import build_loss

START = "start.safetensors"
SCORED = 512  # training images that tell which channels matter


class PruneStage(Stage[PruningStep]):
    """Take channels away until the share `target` of the whole network's multiply-adds is gone, and train on.

    Step 1 starts from the trained network, each later one from the weights of the step before. Raises ConfigError
    where the target cannot be reached, and what training raises.
    """

    inputs = ("prepare",)
    result_type = PruningStep

    def __init__(self, number: int, target: float) -> None:
        self.name = f"{PRUNED}-{number}"  # type: ignore[misc]  # a name a step
        self.number, self.target = number, target

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The weights that the step came to."""
        return [self.weights(folder)]

    def weights(self, folder: RunFolder) -> Path:
        """The file of the weights that the step comes to."""
        return folder.path / PRUNED / f"step-{self.number}" / BEST

    def source(self, context: RunContext) -> Path:
        """The weights that the step starts from."""
        if self.number == 1:
            return context.networks[0]
        return context.folder.path / PRUNED / f"step-{self.number - 1}" / BEST

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The weights that it starts from and imitates, the target and the cases."""
        return self._job(context).facts

    def run(self, context: RunContext) -> PruningStep:
        """Prune to the target, train on, and say what was lost and won back."""
        study, splits, job = resolved_study(context), context.result(PrepareStage), self._job(context)
        start, source = job.folder / START, self.source(context)
        if not _is_begun(start, job.facts):  # what was cut on a GPU may not be cut the same way again
            shutil.rmtree(job.folder, ignore_errors=True)
            narrow = _cut(study, splits, source, self.target)
            write_tensors(start, narrow.state_dict(), {**job.facts, WIDTHS: Widths.of(narrow).to_json()})
        narrow = load_best(study, start)
        widths = Widths.of(narrow).to_json()
        job = replace(job, facts={**job.facts, WIDTHS: widths, "start": file_digest(start)}, start=start)
        score, reporter = validation_score(study, splits["val"]), context.reporter
        callbacks = TrainingCallbacks(score, lambda history: signals.raise_if_interrupted(), reporter)
        before, pruned = (_score(study, splits, load_best(study, path)) for path in (source, start))
        trained = train(job, callbacks, Hardware(1) if has_launcher() else context.hardware)
        tuned = _score(study, splits, load_best(study, trained.weights))
        channels, size = study.prepare.input_channels, study.prepare.size
        counts = [multiply_adds(net, channels, size) for net in (build_model(study), narrow)]
        left = MultiplyAdds(whole=counts[0], pruned=counts[1], share=counts[1] / counts[0])
        scores = ["not defined" if value is None else f"{value:.4f}" for value in (before, pruned, tuned)]
        reporter.message(
            f"pruned to {100 * left.share:.0f} % of the multiply-adds; validation AUC {scores[0]} -> {scores[1]}, "
            f"after {len(trained.history)} epochs {scores[2]}"
        )
        return PruningStep(
            target=self.target,
            multiply_adds=left,
            parameters=sum(parameter.numel() for parameter in narrow.parameters()),
            validation_auc=PruningAuc(before=before, pruned=pruned, tuned=tuned),
            epochs=len(trained.history),
            best_epoch=trained.best,
            widths=ChannelCounts.model_validate_json(widths),
            weights=file_digest(trained.weights),
        )

    def _job(self, context: RunContext) -> TrainingJob:
        """Training as it was, shorter and to its end, with the whole network's answers among the targets."""
        study, splits = resolved_study(context), context.result(PrepareStage)
        pruning, training, teacher = study.compression.pruning, study.training, context.networks[0]
        optimizer = training.optimizer.model_copy(update={"lr": pruning.lr * training.optimizer.rate})
        changed = {
            "epochs": pruning.epochs, "patience": pruning.epochs, "optimizer": optimizer, "switch": None,
            "schedule": Schedule(), "keep": "last",
        }  # fmt: skip
        tuned = study.model_copy(update={"training": training.model_copy(update=changed)})
        cases = [case.case_id for split in (splits["train"], splits["val"]) for case in split.cases]
        facts = {
            "from": file_digest(self.source(context)),
            "target": f"{self.target:.6f}",
            "cases": digest(cases),
            "seed": str(study.seed),
            "recipe": tuned.training_digest(),
            "imitate": f"{pruning.imitate:g} of {file_digest(teacher)}",
        }
        folder = self.weights(context.folder).parent
        job = TrainingJob(tuned, splits["train"], splits["val"], folder, facts)
        return replace(job, teacher=teacher, teacher_share=pruning.imitate)


def steps_to(target: float, steps: int) -> list[float]:
    """The shares of the first network's multiply-adds that are gone after each step, the last of them the target.

    Each step takes the same share of what the one before left.
    """
    return [1 - (1 - target) ** (step / steps) for step in range(1, steps)] + [target]


def pruning_stages(targets: Sequence[float]) -> list[PruneStage]:
    """A stage for each of the rising targets."""
    return [PruneStage(number, target) for number, target in enumerate(targets, start=1)]


def _is_begun(start: Path, facts: Mapping[str, str]) -> bool:
    """Whether a step of these facts was cut before."""
    if not start.exists():
        return False
    known = read_tensors(start)[1]
    return {key: known.get(key) for key in facts} == dict(facts)


def _cut(study: Study, splits: PreparedSplits, weights: Path, target: float) -> nn.Module:
    """The network of the weights without enough of its channels to reach the target, which matter least."""
    device, train_set = open_fabric(study.training).device, splits["train"]
    model = load_best(study, weights)
    picked = choose_calibration(train_set.files, [], SCORED, study.seed)
    loader = predict_loader(study, [train_set.cases[row] for row in picked], [train_set.files[row] for row in picked])
    batches = ((image.to(device), truth.to(device)) for image, truth, _ in loader)
    scores = gradient_scores(model.to(device), batches, build_loss(study, train_set.cases))
    whole, model, size = build_model(study), model.to("cpu"), study.prepare.size
    counts = [multiply_adds(net, study.prepare.input_channels, size) for net in (whole, model)]
    remove = max(0.0, 1 - (1 - target) * counts[0] / counts[1])
    return prune_network(model, size, remove, scores, Widths.of(whole))


def _score(study: Study, splits: PreparedSplits, model: nn.Module) -> float | None:
    """AUC on validation; None where it is not defined."""
    device, val = open_fabric(study.training).device, splits["val"]
    logits, _ = predict_logits(model.to(device), predict_loader(study, val.cases, val.files), device)
    value = float(validation_score(study, splits["val"])(logits, np.empty(0)))
    return value if math.isfinite(value) else None

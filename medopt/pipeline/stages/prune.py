"""The stages `pruned-1`, `pruned-2`, ...: channels go, training goes on, and the same again from what came out.

Each step is a stage of its own with checkpoints of its own: a killed run goes on at the last whole epoch of its step.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medopt.compression.prune import gradient_scores, multiply_adds, prune_network
from medopt.compression.quantize import choose_calibration
from medopt.config import Schedule, Study
from medopt.core import signals
from medopt.core.files import file_digest
from medopt.core.provenance import digest
from medopt.core.reporter import Reporter
from medopt.data.loaders import predict_loader
from medopt.models import build_model
from medopt.models.channel_widths import WIDTHS, Widths
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stages.compress import Sets, validation_score
from medopt.pipeline.study_cases import PRUNED
from medopt.training.checkpoint import read_tensors, write_tensors
from medopt.training.hardware import Hardware, has_launcher, open_fabric
from medopt.training.job import BEST, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.loop import load_best
from medopt.training.losses import build_loss
from medopt.training.predict import predict_logits

START, RESULT = "start.safetensors", "pruning.json"
SCORED = 512  # training images that tell which channels matter


@dataclass(frozen=True, slots=True)
class PrunedStep:
    """The weights that a step came to, and what is known of it."""

    weights: Path
    facts: dict[str, Any]


def steps_to(target: float, steps: int) -> list[float]:
    """The shares of the first network's multiply-adds that are gone after each step, the last of them the target.

    Each step takes the same share of what the one before left.
    """
    return [1 - (1 - target) ** (step / steps) for step in range(1, steps)] + [target]


def prune_in_steps(
    study: Study,
    sets: Sets,
    weights: Path,
    targets: Sequence[float],
    folder: RunFolder,
    reporter: Reporter,
    hardware: Hardware,
    place: str = PRUNED,
) -> list[PrunedStep]:
    """Prune the network with these `weights` until each of the rising `targets` is reached, and train on after each.

    `targets` are shares of the multiply-adds of the study's whole network; each step starts from what the one before
    came to. `study` is the resolved one, its `compression.pruning` says how to train. Every step is a stage of
    `folder`, PLACE-1 and so on, skipped where nothing changed; its files lie in PLACE/step-1. Raises ConfigError where
    a target cannot be reached, and what training raises.
    """
    found: list[PrunedStep] = []
    teacher = weights
    for number, target in enumerate(targets, start=1):
        signals.stop_if_asked()
        here = folder.path / place / f"step-{number}"
        task = _tuning(study, sets, here, _facts(study, sets, weights, target), teacher)

        def work(source: Path = weights, task: TrainingJob = task, share: float = target) -> dict[str, Any]:
            return _step(study, sets, source, share, task, reporter, hardware)

        facts = folder.stage(f"{place}-{number}", task.facts, [here / BEST], work, reporter)
        weights = here / BEST
        found.append(PrunedStep(weights, facts))
    return found


def _facts(study: Study, sets: Sets, weights: Path, target: float) -> dict[str, str]:
    """What tells this step's files from those of any other."""
    cases = [case.case_id for part in (sets["train"], sets["val"]) for case in part.cases]
    return {"from": file_digest(weights), "target": f"{target:.6f}", "cases": digest(cases), "seed": str(study.seed)}


def _tuning(study: Study, sets: Sets, folder: Path, facts: Mapping[str, str], teacher: Path) -> TrainingJob:
    """Training as it was, shorter and to its end, with the whole network's answers among the targets."""
    wanted, training = study.compression.pruning, study.training
    optimizer = training.optimizer.model_copy(update={"lr": wanted.lr * training.optimizer.rate})
    changed = {
        "epochs": wanted.epochs, "patience": wanted.epochs, "optimizer": optimizer, "switch": None,
        "schedule": Schedule(),
    }  # fmt: skip
    tuned = study.model_copy(update={"training": training.model_copy(update=changed)})
    recipe = digest(
        tuned.model_dump(mode="json", exclude={"data": {"manifest"}, "evaluation": True, "compression": True})
    )
    told = {**facts, "recipe": recipe, "imitate": f"{wanted.imitate:g} of {file_digest(teacher)}"}
    return TrainingJob(tuned, sets["train"], sets["val"], folder, told, teacher=teacher, to_the_end=True)


def _step(
    study: Study, sets: Sets, weights: Path, target: float, task: TrainingJob, reporter: Reporter, hardware: Hardware
) -> dict[str, Any]:
    """Prune to the target, train on, and say what was lost and won back."""
    start = task.folder / START
    if not _is_begun(start, task.facts):  # what was cut on a GPU may not be cut the same way again
        shutil.rmtree(task.folder, ignore_errors=True)
        narrow = _cut(study, sets, weights, target)
        write_tensors(start, narrow.state_dict(), {**task.facts, WIDTHS: Widths.of(narrow).to_json()})
    narrow, size = load_best(study, start), study.prepare.size
    counts = [multiply_adds(net, study.prepare.channels, size) for net in (build_model(study), narrow)]
    scores = [_score(study, sets, load_best(study, path)) for path in (weights, start)]
    facts = {**task.facts, WIDTHS: Widths.of(narrow).to_json(), "start": file_digest(start)}
    task = replace(task, facts=facts, start=start)
    lead = TrainingCallbacks(validation_score(study, sets), lambda history: signals.stop_if_asked(), reporter)
    trained = train(task, lead, Hardware(1) if has_launcher() else hardware)
    scores.append(_score(study, sets, load_best(study, trained.weights)))
    told = [f"{score:.4f}" if score is not None else "not defined" for score in scores]
    reporter.message(
        f"pruned to {100 * counts[1] / counts[0]:.0f} % of the multiply-adds; validation AUC {told[0]} -> {told[1]}, "
        f"after {len(trained.history)} epochs {told[2]}"
    )
    return {
        "target": target,
        "multiply_adds": {"whole": counts[0], "pruned": counts[1], "share": counts[1] / counts[0]},
        "parameters": sum(parameter.numel() for parameter in narrow.parameters()),
        "validation_auc": {"before": scores[0], "pruned": scores[1], "tuned": scores[2]},
        "epochs": len(trained.history),
        "best_epoch": trained.best,
        WIDTHS: json.loads(facts[WIDTHS]),
        "weights": file_digest(trained.weights),
    }


def _is_begun(start: Path, facts: Mapping[str, str]) -> bool:
    """Whether a step of these facts was cut before."""
    if not start.exists():
        return False
    found = read_tensors(start)[1]
    return {key: found.get(key) for key in facts} == dict(facts)


def _cut(study: Study, sets: Sets, weights: Path, target: float) -> nn.Module:
    """The network of the weights without enough of its channels to reach the target, which matter least."""
    device, train_set = open_fabric(study.training).device, sets["train"]
    model = load_best(study, weights)
    picked = choose_calibration(train_set.files, [], SCORED, study.seed)
    loader = predict_loader(study, [train_set.cases[row] for row in picked], [train_set.files[row] for row in picked])
    batches = ((image.to(device), truth.to(device)) for image, truth, _ in loader)
    scores = gradient_scores(model.to(device), batches, build_loss(study, train_set.cases))
    whole, model, size = build_model(study), model.to("cpu"), study.prepare.size
    counts = [multiply_adds(net, study.prepare.channels, size) for net in (whole, model)]
    remove = max(0.0, 1 - (1 - target) * counts[0] / counts[1])
    return prune_network(model, size, remove, scores, Widths.of(whole))


def _score(study: Study, sets: Sets, model: nn.Module) -> float | None:
    """AUC on validation; None where it is not defined."""
    device, val = open_fabric(study.training).device, sets["val"]
    logits, _ = predict_logits(model.to(device), predict_loader(study, val.cases, val.files), device)
    value = float(validation_score(study, sets)(logits, torch.empty(0)))
    return value if math.isfinite(value) else None

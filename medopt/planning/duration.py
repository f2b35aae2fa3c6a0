"""How long a planned study will take on this machine: an estimate from one measured step."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from medopt.config import Study
from medopt.core.format import count_text, duration_text
from medopt.models import build_model
from medopt.models.cost import study_cost
from medopt.planning.fingerprint import Fingerprint
from medopt.planning.size import PASSES

AUGMENTED = 1.25
"""By how much augmentation and loading lengthen a step, as measured."""
_WORK = 20e9
"""Multiply-adds that are measured: a second or two of two cores."""


def duration_notes(study: Study, fingerprint: Fingerprint, device: str, read_seconds: float) -> list[str]:
    """What a run will take on this machine, in sentences; `read_seconds` is what reading the sample took."""
    if device == "cuda" and not torch.cuda.is_available():
        return ["How long training takes on a GPU is not estimated: this machine has none."]
    prepare = read_seconds / max(1, len(fingerprint.sample)) * fingerprint.images
    notes = [f"Reading all scans once takes {duration_text(prepare)} here (estimate: the sample's time)."]
    if study.model.has_start:
        return [*notes, "Only a linear model is fitted to the start's features: one pass over the images, no epochs."]
    seconds, count = seconds_an_image(study, device), fingerprint.train
    size = study.training.resolved_sizes[0]
    steps = max(1, count // size)
    looked = fingerprint.counts["val"].get("", 0) / PASSES
    whole = study.training.epochs * seconds * (AUGMENTED * steps * size + looked)
    by = "its GPU" if device == "cuda" else count_text(torch.get_num_threads(), "CPU thread")
    return [
        *notes,
        f"Training takes {duration_text(whole)} here: {study.training.epochs} epochs of {steps} steps of {size} images "
        f"(estimate: {1000 * seconds:.3g} ms an image, measured just now on {by}; longer where other programs run).",
    ]


def seconds_an_image(study: Study, device: str) -> float:
    """Seconds that a forward and a backward pass take for one image, in a step of as many as the study has at once."""
    size, at_once = study.training.resolved_sizes
    cost = study_cost(study)
    count = int(max(2, min(size, at_once, _WORK / (PASSES * cost.multiply_adds) if device == "cpu" else at_once)))
    model = build_model(study).to(device).train()
    images = torch.rand(count, study.prepare.input_channels, *study.prepare.size, device=device)
    times = []
    for _ in range(3):
        started, spent = time.perf_counter(), time.process_time()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(images).float()
        loss = binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        loss.backward()
        loss.item()  # waits for a GPU
        model.zero_grad()
        alone = (time.process_time() - spent) / torch.get_num_threads()  # without the time that others' programs took
        taken = time.perf_counter() - started
        times.append(min(taken, alone) if device == "cpu" else taken)
    return min(times[1:]) / count

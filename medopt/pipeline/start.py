"""A study with a start: the network that the start decides, and the settings that a start is trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medopt.config import Optimizer, Study
from medopt.config.model import AUTO, SCRATCH
from medopt.core.errors import ConfigError
from medopt.models.starts.adapt import scaled_channels
from medopt.models.starts.catalogue import Entry, entries, local_file, refuse_use
from medopt.models.starts.opening import OpenedStart, open_start

RECIPE: dict[str, Any] = {
    "epochs": 8,
    "patience": 8,
    "mixup": 0.0,
    "ema_decay": 0.95,
    "optimizer": Optimizer(lr=3e-5, weight_decay=0.01),
}
"""How a start is tuned where the study says nothing else (benchmarks/transfer.py)."""


def resolve_start(study: Study, near: Path) -> Study:
    """The study with its start's digest, depth, width, stem and variant filled in; one from scratch as it is.

    `near` is the folder of the study file. A resolved study comes back equal. Raises ConfigError where the start is not
    there, is another than the study's, does not fit what the study says of its network, or may not be used for it.
    """
    study = _with_chosen(study)
    if not study.model.has_start:
        return study
    opened = open_study_start(study, near)
    given = study.model.model_fields_set
    own = opened.start.architecture() | {"scaled_channels": scaled_channels(opened.start, study.prepare.channels)}
    for key, value in own.items():
        said = getattr(study.model, key)
        if key in given and said not in (value, "auto"):
            raise ConfigError(f"model.{key} is {said}, but the start {opened.name} has {value}; leave it out.")
    training = {key: value for key, value in RECIPE.items() if key not in study.training.model_fields_set}
    model = {"start": opened.name, "start_digest": opened.digest, "head": study.model.architecture()["head"], **own}
    return study.model_copy(
        update={
            "model": study.model.model_copy(update=model),
            "training": study.training.model_copy(update=training),
        }
    )


def open_study_start(study: Study, near: Path = Path()) -> OpenedStart:
    """The start of a study whose `auto` is resolved; raises ConfigError as `resolve_start` does."""
    opened = open_start(study.model.start, near)
    if opened.entry is not None:
        refuse_use(opened.entry, study.intended_use)
    if study.model.start_digest not in ("", opened.digest):
        raise ConfigError(
            f"The start {opened.name} has changed: its SHA-256 is {opened.digest[:16]}..., the study's "
            f"{study.model.start_digest[:16]}.... Put the file back, or take model.start_digest out of the study."
        )
    dims = opened.start.spatial_dims
    if dims == 3 and study.spatial_dims == 2:
        raise ConfigError(f"The start {opened.name} is of volumes; this study has images (prepare.size).")
    return opened


def _with_chosen(study: Study) -> Study:
    """The study with `auto` replaced by the best-fitting start on this disk, or by scratch."""
    if study.model.start != AUTO:
        return study
    entry = best_on_disk(study)
    return study.model_copy(
        update={"model": study.model.model_copy(update={"start": entry.name if entry else SCRATCH})}
    )


def best_on_disk(study: Study) -> Entry | None:
    """The start of the catalogue that lies on this disk, may be used, and fits best: of the same dimensions, and that
    was trained on images of this number of channels.

    One that was trained on photographs for another purpose is never chosen so; it has to be named.
    """
    fitting = [entry for entry in entries() if fits(entry, study) and entry.chosen_by_auto and local_file(entry)]
    return max(fitting, key=lambda entry: (entry.channels == study.prepare.channels, entry.name), default=None)


def fits(entry: Entry, study: Study) -> bool:
    """Whether a start is of images as the study's, and its licence allows the study's use."""
    return entry.spatial_dims == study.spatial_dims and (not study.intended_use or "clinical" in entry.allows)

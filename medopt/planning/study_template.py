"""The layout of a study's own repository: what `medopt init` writes."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from medopt.core.errors import ConfigError
from medopt.core.files import write_text

FILES = {"README.md": "README.md", "Makefile": "Makefile", "labels.csv": "labels.csv", "gitignore": ".gitignore"}
SCANS = "scans"
_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"


def write_layout(folder: Path, name: str = "") -> list[Path]:
    """Write the files of a new study repository and its empty folder of scans; returns them.

    `name` is the study's, by default the folder's. Raises ConfigError where it cannot name a study, or where one of the
    files is there already: nothing is replaced.
    """
    name = name or folder.resolve().name
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"{name!r} cannot name a study: use small letters, digits, - and _, 63 at most, with a letter or a digit "
            "first (--name)."
        )
    places = [folder / target for target in FILES.values()]
    if there := [str(place) for place in places if place.exists()]:
        raise ConfigError(f"{', '.join(there)}: there already, and not replaced. Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for source, place in zip(FILES, places, strict=True):
        text = (files("medopt.planning") / "template" / source).read_text(encoding="utf-8")
        write_text(place, text.replace("{name}", name))
    (folder / SCANS).mkdir(exist_ok=True)
    return [*places, folder / SCANS]

"""The studies and manifests that come with medopt, found by name: in a wheel, a clone or an editable installation."""

from __future__ import annotations

import difflib
from pathlib import Path

from medopt.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds them in the package; a clone has them beside it.
_PLACES = (_PACKAGE / "_shipped", _PACKAGE.parent)
_OWN = Path("pipelines")


def study_path(study: Path) -> Path:
    """The file of a study that is given by path or by name: as it is, else in ./pipelines, else one that is shipped.

    Raises ConfigError where a name is known in none of these, with the nearest one; a path is returned as it is.
    """
    if study.suffix or len(study.parts) != 1 or study.is_file():
        return study
    own = _OWN / f"{study}.yaml"
    return own if own.is_file() else shipped_study(str(study))


def shipped_study(name: str) -> Path:
    """The file of a shipped study; raises ConfigError with the nearest name and all that there are.

    >>> shipped_study("phantom").name
    'phantom.yaml'
    """
    folder, names = _shipped("pipelines"), shipped_names()
    if folder is not None and name in names:
        return folder / f"{name}.yaml"
    own = sorted(path.stem for path in _OWN.glob("*.yaml"))
    known = list(dict.fromkeys([*own, *names]))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"There is no study file {name}, and no study of that name.{hint} Known by name: {', '.join(known) or 'none'}."
    )


def shipped_names() -> list[str]:
    """Names of the shipped studies, sorted."""
    folder = _shipped("pipelines")
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder else []


def shipped_manifests() -> Path | None:
    """The folder of the shipped manifests and their cards; None where they were not installed."""
    return _shipped("data_manifests")


def _shipped(folder: str) -> Path | None:
    return next((place / folder for place in _PLACES if (place / folder).is_dir()), None)

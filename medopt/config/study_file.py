"""A study file read into a Study, with overrides; and where its manifest and its data are looked for."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medopt.config import Study
from medopt.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: else the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [str(key) for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_study(path: str | Path, overrides: list[str] | None = None) -> Study:
    """Read a study file (YAML) and apply overrides of the form `training.epochs=3`.

    Raises ConfigError naming the file, the key and the nearest known key.

    >>> from pathlib import Path
    >>> _ = Path("nodules.yaml").write_text(
    ...     "name: nodules\\n"
    ...     "question: Is there a nodule?\\n"
    ...     "data: {manifest: phantom/manifest.csv, root: phantom, labels: [no_nodule, nodule]}\\n"
    ...     "prepare: {size: [32, 32]}\\n")
    >>> study = load_study("nodules.yaml", ["training.epochs=3"])
    >>> study.training.epochs, study.spatial_dims
    (3, 2)
    """
    path = Path(path)
    raw = read_keys(path, "study file", "name, data and prepare")
    for override in overrides or []:
        _apply(raw, override)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + " ".join(explain(item) for item in error.errors()[:5])) from None


def read_keys(path: Path, what: str, such_as: str) -> dict[str, Any]:
    """The keys of a YAML file; raises ConfigError that calls it `what` and says which keys belong there."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"There is no {what} {path}. {what.capitalize()}s beside it: {near}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a {what}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is not a {what}: it must hold keys such as {such_as}.")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, as in --set training.epochs=3; got {override!r}.")
    *parents, last = key.strip().split(".")
    place = raw
    for parent in parents:
        place[parent] = {} if place.get(parent) is None else place[parent]
        place = place[parent]
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section.")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML.") from None


def explain(item: Any, root: type[BaseModel] = Study) -> str:
    """One of pydantic's findings in a file of `root`, as a sentence with the nearest known key."""
    where = ".".join(str(part) for part in item["loc"]) or "the file"
    if item["type"] == "extra_forbidden":
        parents = (str(part) for part in item["loc"][:-1] if not isinstance(part, int))
        return _unknown(where, _section(".".join(parents), root))
    if item["type"] == "missing":
        return f"{where} is missing."
    got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{got}."


def annotation_of(key: str, root: type[BaseModel] = Study) -> Any:
    """The type of a key such as training.optimizer.lr; raises ConfigError naming the nearest known key."""
    parent, _, last = key.rpartition(".")
    section = _section(parent, root)
    if section is None:
        raise ConfigError(f"{key}: {parent} is a value, not a section.")
    if last not in section.model_fields:
        raise ConfigError(_unknown(key, section))
    return section.model_fields[last].annotation


def _section(key: str, root: type[BaseModel]) -> type[BaseModel] | None:
    """The section that a key names, or one of its list; '' is the whole. None where it is a value."""
    if not key:
        return root
    found = annotation_of(key, root)
    kinds = (one for one in (found, *get_args(found)) if isinstance(one, type))
    return next((one for one in kinds if issubclass(one, BaseModel)), None)


def _unknown(key: str, section: type[BaseModel] | None) -> str:
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known here are {', '.join(known)}."
    return f"unknown key {key}: {hint}"


def data_folder(given: Path | None) -> Path:
    """Where images lie: --data, else MEDOPT_DATA, else ./data."""
    return given or Path(os.environ.get("MEDOPT_DATA") or "data")


def find_manifest(study: Study, study_file: Path, data: Path) -> Path:
    """The study's manifest, beside the study file or in the data folder.

    Raises ConfigError naming both places.
    """
    places = [study_file.parent / study.data.manifest, data / study.data.manifest]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"The manifest of study {study.name} is not there; looked for {places[0]} and {places[1]}. "
        f"Give the folder that holds the data with --data DIR or MEDOPT_DATA, or get it: medopt fetch {study.name}."
    )

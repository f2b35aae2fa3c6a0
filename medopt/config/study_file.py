"""A study file read into a Study, with overrides; and where its manifest and its data are looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from medopt.config import Study
from medopt.config.shipped import shipped_manifests
from medopt.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the last would win without a word."""

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
    return parse_study(read_keys(path, "study file", "name, data and prepare"), overrides, str(path))


def parse_study(raw: dict[str, Any], overrides: list[str] | None, where: str) -> Study:
    """A study from the keys of its file, which overrides change; raises ConfigError that begins with `where`."""
    for override in overrides or []:
        _apply(raw, override)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + " ".join(explain(item) for item in error.errors()[:5])) from None


def read_keys(path: Path, what: str, such_as: str) -> dict[str, Any]:
    """The keys of a YAML file; raises ConfigError that calls it `what` and says which keys belong there."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"There is no {what} {path}. {what.capitalize()}s beside it: {near}.") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path} cannot be read as a {what}: {_yaml_problem(error)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a {what}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is not a {what}: it must hold keys such as {such_as}.")
    return raw


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, and where; without the lines that YAML's own text quotes, which may hold a credential."""
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{error.problem or error.context or 'it is not YAML'}{place}."


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, as in --set training.epochs=3; got {override!r}.")
    *parents, last = key.strip().split(".")
    first = (*parents, last)[0]
    if first not in Study.model_fields:
        raise ConfigError(f"--set {override}: {_unknown(first, Study)}")
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
        try:
            return _unknown(where, _section(".".join(parents), root))
        except ConfigError:  # within a table of names of its own, as the headers of a service
            return f"unknown key {where}."
    if item["type"] == "missing":
        return f"{where} is missing."
    if item["type"] == "string_type" and isinstance(item["input"], bool | int | float | date):
        return f"{where}: {_unquoted(item['input'])}"
    got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{got}."


def _unquoted(value: bool | int | float | date) -> str:
    """Say that YAML does not read this unquoted word as text, and how to write it."""
    if isinstance(value, bool):
        words, word = ("yes, on and true", "yes") if value else ("no, off and false", "no")
        return f'YAML takes the words {words} for a truth value. Put it in quotes, as in "{word}" (got {value}).'
    kind = "a date" if isinstance(value, date) else "a number"
    return f'YAML takes {value} for {kind}, and a text is needed. Put it in quotes: "{value}" (got {value}).'


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
    annotation = annotation_of(key, root)
    kinds = (kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _unknown(key: str, section: type[BaseModel] | None) -> str:
    """That a key is unknown, and which was meant: one of that name elsewhere, else the nearest in its section."""
    known, last = list(section.model_fields) if section else [], key.rpartition(".")[2]
    # At the top a name that belongs in a section was probably meant there: epochs for training.epochs.
    everywhere = list(_paths(Study)) if section is Study else []
    same = [path for path in everywhere if path.rpartition(".")[2] == last]
    alike = [path for path in everywhere if difflib.get_close_matches(last, [path.rpartition(".")[2]], cutoff=0.8)]
    near = _shallowest(same) or difflib.get_close_matches(last, known, n=1, cutoff=0.75) or _shallowest(alike)
    near = near or difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"known here are {', '.join(known)}."
    return f"unknown key {key}: {hint}"


def _shallowest(paths: list[str]) -> list[str]:
    depth = min((path.count(".") for path in paths), default=0)
    return [path for path in paths if path.count(".") == depth]


def _paths(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key below a section, as training.optimizer.lr; those of lists are left out."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}"
        annotation = field.annotation
        kinds = (kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
        if get_origin(annotation) not in (list, dict, tuple):
            for kind in kinds:
                if issubclass(kind, BaseModel):
                    yield from _paths(kind, f"{above}{name}.")


def data_folder(folder: Path | None) -> Path:
    """Where images lie: --data, else MEDOPT_DATA, else ./data."""
    return folder or Path(os.environ.get("MEDOPT_DATA") or "data")


def find_manifest(study: Study, study_file: Path, data: Path) -> Path:
    """The study's manifest: beside the study file, in the data folder, or one of those that come with medopt.

    Raises ConfigError naming the first two places.
    """
    places = [study_file.parent / study.data.manifest, data / study.data.manifest]
    if shipped := shipped_manifests():
        places.append(shipped / Path(study.data.manifest).name)
    for place in places:
        if place.is_file():
            return place
    source = "medopt phantom data/phantom draws it" if study.name == "phantom" else f"medopt fetch {study.name} gets it"
    raise ConfigError(
        f"The manifest of study {study.name} is not there; looked for {places[0]} and {places[1]}. "
        f"Give the folder that holds the data with --data DIR or MEDOPT_DATA; if the data are public, {source}."
    )

"""A study's settings as MLflow's parameters: those that differ from the defaults; all of them are in `study.yaml`."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from pydantic_core import to_jsonable_python

from medopt.config import Section, Study
from medopt.core.provenance import digest

STUDY_FILE = "study.yaml"
DEFAULTS = "defaults"  # the parameter that says how many settings are at their defaults, and the digest of these
_ALWAYS = ("seed",)  # it tells the members of a group apart, the first of which has the default
_LONGEST = 6000  # characters of a value that MLflow takes
_PLACE = "data.manifest"  # where a file lies is no setting


def parameters(study: Study) -> dict[str, str]:
    """Settings that differ from the defaults, as `training.epochs`, and the digest of the others.

    Runs with the same parameters have the same settings, whichever version's defaults they are.
    """
    every, own = _settings(study), _own(study)
    rest = {key: value for key, value in every.items() if key not in own}
    return own | {DEFAULTS: f"{len(rest)} settings, sha256 {digest(rest)[:16]}"}


def changes(begun: Mapping[str, str], study: Study) -> list[str]:
    """What a continued run has otherwise than it was begun with, as `KEY: BEFORE -> NOW`.

    Without a parameter the setting had its default; a run of an older version has them all.
    """
    every, own = _settings(study), _own(study)
    defaults = _texts(_defaults(Study))
    told = []
    for key in (key for key in every if key != _PLACE and (key in begun or key in own)):
        before = begun.get(key, defaults.get(key, every[key]))
        if before != every[key]:
            told.append(f"{key}: {before} -> {every[key]}")
    return told


def study_text(study: Study) -> str:
    """The whole study, as in its run folder."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)


def flatten(value: Mapping[str, object], prefix: str = "", separator: str = ".") -> dict[str, object]:
    """Nested mappings as one with joined keys."""
    flat: dict[str, object] = {}
    for key, item in value.items():
        name = f"{prefix}{separator}{key}" if prefix else str(key)
        flat |= flatten(item, name, separator) if isinstance(item, Mapping) else {name: item}
    return flat


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value)[:_LONGEST] for key, value in flatten(values).items()}


def _settings(study: Study) -> dict[str, str]:
    return _texts(study.model_dump(mode="json"))


def _own(study: Study) -> dict[str, str]:
    defaults = _texts(_defaults(Study))
    return {key: value for key, value in _settings(study).items() if defaults.get(key) != value or key in _ALWAYS}


def _defaults(section: type[Section]) -> dict[str, object]:
    """What a section has where a study file says nothing; what has to be said is not in it."""
    found: dict[str, object] = {}
    for name, field in section.model_fields.items():
        if not field.is_required():
            found[name] = to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[name] = _defaults(field.annotation)
    return found

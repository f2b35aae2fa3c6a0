"""What a sweep may change: `--param training.optimizer.lr=1e-4..1e-2:log`, over any path of a study file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from medopt.config import Study
from medopt.config.study_file import annotation_of, load_study
from medopt.core.errors import ConfigError
from medopt.core.provenance import digest
from medopt.pipeline.study_cases import StudyCases

_RANGE = re.compile(r"(?P<low>[^.]*(?:\.[^.]+)?)\.\.(?P<high>[^:]+?)(?P<log>:log)?")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path and its choices, or the ends of its range; values are written as an override takes them."""

    path: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False

    @property
    def corners(self) -> tuple[str, ...]:
        """The values that are tried first of all, to see whether a study takes them: all choices, or both ends."""
        return self.choices or (self.written(self.low), self.written(self.high))

    def written(self, value: float) -> str:
        """A number of the range as YAML reads it as a number: YAML takes 1e-05 for a text."""
        if self.is_whole:
            return str(int(value))
        text = repr(float(value))
        return text.replace("e", ".0e") if "e" in text and "." not in text else text

    def near(self, value: Any) -> str | float | None:
        """The study's own value in this space, None where it lies outside."""
        if self.choices:
            return next((text for text in self.choices if yaml.safe_load(text) == value), None)
        known = isinstance(value, int | float) and self.low <= value <= self.high
        return (int(value) if self.is_whole else float(value)) if known else None


def parse_space(texts: Sequence[str], study_file: Path, overrides: Sequence[str]) -> tuple[Parameter, ...]:
    """The parameters of a sweep, each checked against the study.

    Raises ConfigError for a path that no study has (with the nearest one), for a range that is none, and where the
    study does not take an end of a range or one of the choices.
    """
    space = tuple(_parse(text) for text in texts)
    paths = [one.path for one in space]
    if not space or len(set(paths)) < len(paths):
        raise ConfigError(
            "A sweep needs --param once or more, each for another path, as in --param model.depth=26,50 --param "
            "training.optimizer.lr=1e-4..1e-2:log."
        )
    for one in space:
        for value in one.corners:
            load_study(study_file, [*overrides, f"{one.path}={value}"])
    return space


def _parse(text: str) -> Parameter:
    path, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not path or not value:
        raise ConfigError(f"--param takes PATH=LOW..HIGH, PATH=LOW..HIGH:log or PATH=A,B,C; got {text!r}.")
    kinds = _kinds(annotation_of(path))
    found = _RANGE.fullmatch(value)
    if found is None:
        choices = _choices(value)
        if len(set(choices)) < 2:
            raise ConfigError(f"--param {text}: one value leaves nothing to choose; give it with --set, or add others.")
        return Parameter(path, choices)
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        raise ConfigError(f"--param {text}: a range goes from a number to a number, as in 1e-4..1e-2:log.") from None
    whole = int in kinds and float not in kinds
    if not low < high or (found["log"] and low <= 0) or (whole and not (low.is_integer() and high.is_integer())):
        what = "whole numbers from low to high" if whole else "from low to high, above 0 where it is :log"
        raise ConfigError(f"--param {text}: a range of {path} takes {what}.")
    if not {int, float} & kinds:
        raise ConfigError(f"--param {text}: {path} is not a number; list its values, as in {path}=A,B.")
    return Parameter(path, (), low, high, found["log"] is not None, whole)


def _kinds(annotation: Any) -> set[type]:
    """The plain types that a key may have."""
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation}
    return set().union(*(_kinds(one) for one in get_args(annotation)))


def _choices(text: str) -> tuple[str, ...]:
    """Values between commas; a comma within brackets parts nothing."""
    found, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    return tuple(part.strip() for part in found if part.strip())


def value_of(study: Study, path: str) -> Any:
    """What a study says at a path."""
    found: Any = study.model_dump(mode="json")
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


@dataclass(frozen=True, slots=True)
class Sweep:
    """A study, what may be changed in it, and how often."""

    study: Study
    study_file: Path
    overrides: tuple[str, ...]
    space: tuple[Parameter, ...]
    trials: int
    is_pruned: bool = True

    def place(self, source: StudyCases, runs: Path) -> Path:
        """The folder of the sweep: more trials of the same question go on in it."""
        what = {"study": self.study.digest(), "manifest": source.digest, "space": [asdict(one) for one in self.space]}
        return runs / self.study.name / f"sweep-{digest(what | {'pruned': self.is_pruned})[:8]}"

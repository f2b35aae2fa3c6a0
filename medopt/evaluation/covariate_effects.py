"""What the covariates' coefficients mean: how one change of a value changes the odds, or the number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medopt.config import Covariate
from medopt.core.covariates import CovariateTerm, Floats
from medopt.core.format import amount_text, unit_text
from medopt.core.number_scale import NumberScale
from medopt.core.records import Task, is_exclusive

NOTE = (
    "The coefficients were learned together with the image's part, under a penalty, so they say what a value adds to "
    "the image, not what it tells alone, and they have no interval. They do not show causes."
)


@dataclass(frozen=True, slots=True)
class CovariateEffect:
    """A change of one covariate, in words, and what it does to each output: a factor on its odds, or to the number."""

    change: str
    effects: tuple[str, ...]


def effect_name(task: Task, scale: NumberScale | None) -> str:
    """What the effects are."""
    if task == "regression":
        return "factor" if scale is not None and scale.scale == "log" else "difference"
    return "odds ratio"


def effects_of(
    covariates: Sequence[Covariate], term: CovariateTerm, task: Task, scale: NumberScale | None = None
) -> tuple[CovariateEffect, ...]:
    """The effect of each covariate: of a number for one standard deviation more, of a category against its most
    frequent value, of a missing value against the mean, or against that value.

    Of classes that exclude each other it is a factor on the odds of each against the geometric mean of all.
    """
    return tuple(
        CovariateEffect(change, tuple(_text(value, task, scale) for value in _centred(row, task)))
        for change, row in _changes(covariates, np.array(term.weights))
    )


def _changes(covariates: Sequence[Covariate], weights: Floats) -> Iterator[tuple[str, Floats]]:
    at = 0
    for one in covariates:
        fitted = one.fitted
        assert fitted is not None
        own, base = weights[at : at + one.encoded], np.zeros(weights.shape[1])
        at += one.encoded
        if one.kind == "category":
            base = own[0]
            for level, row in zip(fitted.levels[1:], own[1:], strict=False):
                yield f"{one.column}: {level} instead of {fitted.levels[0]}", row - base
            against = fitted.levels[0]
        else:
            yield f"{one.column}: {fitted.spread:.3g} more", own[0]
            against = f"{fitted.mean:.3g}"
        if fitted.has_missing:
            yield f"{one.column}: missing instead of {against}", own[-1] - base


def _centred(row: Floats, task: Task) -> list[float]:
    values: list[float] = (row - row.mean() if is_exclusive(task) else row).tolist()
    return values


def _text(value: float, task: Task, scale: NumberScale | None) -> str:
    if task != "regression" or scale is None:
        return f"{math.exp(min(value, 700.0)):.3g}"
    change = value * scale.spread
    return (
        f"{math.exp(min(change, 700.0)):.3g}"
        if scale.scale == "log"
        else f"{amount_text(change)}{unit_text(scale.unit)}"
    )

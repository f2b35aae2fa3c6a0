"""Figures in the words of a report: a value with its interval, shares, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Estimate = Mapping[str, Any]
UNDEFINED = "not defined"


def figure(estimate: Estimate | None, digits: int = 3) -> str:
    """0.912 (0.871 to 0.944); a figure without an interval alone, one that is not defined in words."""
    return _told(estimate, lambda value: f"{value:.{digits}f}")


def share(estimate: Estimate | None, digits: int = 1) -> str:
    """91.2 % (87.1 to 94.4)."""
    return _told(estimate, lambda value: f"{100 * value:.{digits}f}", " %")


def difference(estimate: Estimate | None, digits: int = 3) -> str:
    """-0.012 (-0.031 to +0.004)."""
    return _told(estimate, lambda value: f"{round(value, digits) + 0.0:+.{digits}f}")  # never -0.000


def _told(estimate: Estimate | None, number: Callable[[float], str], unit: str = "") -> str:
    if not estimate or estimate.get("value") is None:
        return UNDEFINED
    shown = f"{number(estimate['value'])}{unit}"
    return (
        shown if estimate.get("low") is None else f"{shown} ({number(estimate['low'])} to {number(estimate['high'])})"
    )


def below_zero(estimate: Estimate | None) -> bool:
    """Whether the whole interval lies below 0."""
    return bool(estimate and estimate.get("high") is not None and estimate["high"] < 0)


def note(estimate: Estimate | None) -> str:
    """What has to be said beside a figure."""
    return str((estimate or {}).get("note", ""))


def plain(name: str) -> str:
    """A key as words: low_resolution is low resolution."""
    return name.replace("_", " ")


def joined(items: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))

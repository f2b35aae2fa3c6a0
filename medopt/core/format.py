"""An estimate in words, in the one form that every table, page, card and picture uses: `0.871 (0.832 to 0.902)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing numpy takes longer than `medopt --help` may
    from medopt.core.records import Estimate

UNDEFINED = "not defined"


def count_text(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun, in the plural where it is not 1.

    >>> count_text(1, "scan"), count_text(0, "scan"), count_text(2, "study", "studies")
    ('1 scan', '0 scans', '2 studies')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def duration_text(seconds: float) -> str:
    """A duration as people say it.

    >>> duration_text(0.4), duration_text(50), duration_text(735), duration_text(19_000), duration_text(300_000)
    ('under 10 s', 'about 50 s', 'about 12 min', 'about 5 h', 'about 3 days')
    """
    if seconds < 10:
        return "under 10 s"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600)} h" if seconds < 48 * 3600 else f"about {round(seconds / 86_400)} days"


def format_estimate(estimate: Estimate | None, digits: int = 3) -> str:
    """A figure with its interval; without one the value alone, and `not defined` where there is no value.

    >>> from medopt.core.records import Estimate
    >>> format_estimate(Estimate(0.8712, 0.8319, 0.9021, 120))
    '0.871 (0.832 to 0.902)'
    >>> format_estimate(Estimate(None, None, None, 0, "no cases"))
    'not defined'
    """
    return _written(estimate, lambda value: f"{value:.{digits}f}")


def format_share(estimate: Estimate | None, digits: int = 1) -> str:
    """A share in per cent.

    >>> from medopt.core.records import Estimate
    >>> format_share(Estimate(0.912, 0.871, 0.944, 120))
    '91.2 % (87.1 to 94.4)'
    """
    return _written(estimate, lambda value: f"{100 * value:.{digits}f}", " %")


def format_difference(estimate: Estimate | None, digits: int = 3) -> str:
    """A difference, with its sign.

    >>> from medopt.core.records import Estimate
    >>> format_difference(Estimate(-0.012, -0.0314, 0.0042, 120))
    '-0.012 (-0.031 to +0.004)'
    """
    return _written(estimate, lambda value: f"{round(value, digits) + 0.0:+.{digits}f}")  # never -0.000


def format_amount(estimate: Estimate | None) -> str:
    """A quantity of any size, to four digits.

    >>> from medopt.core.records import Estimate
    >>> format_amount(Estimate(249.44, 180.3, 1320.6, 39))
    '249.4 (180.3 to 1321)'
    """
    return _written(estimate, amount_text)


def amount_text(value: float) -> str:
    """A number to four digits, without an exponent.

    >>> amount_text(12345.6), amount_text(0.012345)
    ('12346', '0.01234')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def unit_text(code: str) -> str:
    """A UCUM code as it stands behind a number, with the blank before it; nothing for numbers without a unit.

    >>> unit_text("mm3"), unit_text("a"), unit_text("1")
    (' mm3', ' years', '')
    """
    return {"1": "", "a": " years", "[hnsf'U]": " HU"}.get(code, f" {code}")


def _written(estimate: Estimate | None, number: Callable[[float], str], unit: str = "") -> str:
    if estimate is None or estimate.value is None:
        return UNDEFINED
    value = f"{number(estimate.value)}{unit}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({number(estimate.low)} to {number(estimate.high)})"

"""The status page: one HTML document without scripts or anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from medopt import __version__
from medopt.pacs.http.health import OK
from medopt.pacs.http.status_query import Overview

_FOLDER = files("medopt.pacs.http") / "templates"
_STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
_PAGE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
    (_FOLDER / "page.html").read_text(encoding="utf-8")
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "img-src data:"
)
"""Content-Security-Policy: nothing but this page's own style."""
EVERY = (5, 15, 60)


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What the page shows. `told` answers the form that was sent."""

    aet: str
    checks: Mapping[str, str]
    overview: Overview
    spool_bytes: int
    free_bytes: int
    now: float
    token: str
    told: str = ""
    every: int = 0


def render(facts: PageFacts) -> str:
    """The whole document."""
    return _PAGE.render(
        facts=facts,
        overview=facts.overview,
        wrong={part: why for part, why in facts.checks.items() if why != OK},
        style=_STYLE,
        version=__version__,
        every=EVERY,
        at=_moment(facts.now),
        moment=_moment,
        age=lambda since: _span(max(0.0, facts.now - since)),
        span=_span,
        size=_size,
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

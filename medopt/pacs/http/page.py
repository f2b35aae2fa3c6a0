"""The status page: one HTML document without scripts and without resources from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from medopt import __version__
from medopt.pacs.http.monitoring import OK
from medopt.pacs.status import QueueOverview

_FOLDER = files("medopt.pacs.http") / "templates"
_STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
_TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
    (_FOLDER / "page.html").read_text(encoding="utf-8")
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; img-src data:"
)
"""Nothing but the page's own style."""
REFRESH_SECONDS = (5, 15, 60)
"""How often the page may reload itself."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """The values on the page. `message` answers the form that was sent; `refresh_seconds` 0: no reload."""

    aet: str
    checks: Mapping[str, str]
    overview: QueueOverview
    spool_bytes: int
    free_bytes: int
    now: float
    token: str
    message: str = ""
    refresh_seconds: int = 0


def render(content: PageContent) -> str:
    """The HTML document."""
    return _TEMPLATE.render(
        content=content,
        overview=content.overview,
        failing={part: why for part, why in content.checks.items() if why != OK},
        style=_STYLE,
        version=__version__,
        refresh_choices=REFRESH_SECONDS,
        at=_time_text(content.now),
        moment=_time_text,
        age=lambda since: _duration_text(max(0.0, content.now - since)),
        span=_duration_text,
        size=_size_text,
    )


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _duration_text(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _size_text(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

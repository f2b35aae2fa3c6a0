"""The status page: one HTML document without scripts and without resources from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from medopt import __version__
from medopt.pacs.http.monitoring import OK
from medopt.pacs.status import QueueOverview
from medopt.serving.server.html_page import page_template

_TEMPLATE = page_template("medopt.pacs.http", "page.html")
REFRESH_SECONDS = (5, 15, 60)
"""How often the page may reload itself."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """The values on the page. `message` answers the form that was sent; `refresh_seconds` 0: no reload.

    `candidate`: `ok`, or why the candidate does not answer; None without one.
    """

    aet: str
    checks: Mapping[str, str]
    overview: QueueOverview
    spool_bytes: int
    free_bytes: int
    now: float
    token: str
    message: str = ""
    refresh_seconds: int = 0
    candidate: str | None = None


def render(content: PageContent) -> str:
    """The HTML document."""
    return _TEMPLATE.render(
        content=content,
        overview=content.overview,
        failing={part: why for part, why in content.checks.items() if why != OK},
        version=__version__,
        refresh_choices=REFRESH_SECONDS,
        at=time_text(content.now),
        moment=time_text,
        age=lambda since: duration_text(max(0.0, content.now - since)),
        span=duration_text,
        size=_size_text,
    )


def time_text(seconds: float) -> str:
    """A moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration_text(seconds: float) -> str:
    """A duration in its largest unit."""
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

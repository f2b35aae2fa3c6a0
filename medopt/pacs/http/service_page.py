"""The monitoring page: the release in service over time. It shows aggregates only, and no study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from medopt import __version__
from medopt.core.format import format_estimate
from medopt.core.records import Estimate
from medopt.pacs.alert_rules import Queue
from medopt.pacs.alert_settings import AlertSettings
from medopt.pacs.http.page import duration_text, time_text
from medopt.pacs.service_view import SAMPLE, Period, ServiceSummary
from medopt.serving.server.html_page import page_template

_TEMPLATE = page_template("medopt.pacs.http", "service.html")
_ANSWERS = ("outcome", "decision", "number")
_WIDTH, _HEIGHT = 300.0, 90.0
MIN_SCANS = 15
"""Of fewer scans a share is not shown: chance alone moves it."""


@dataclass(frozen=True, slots=True)
class ServiceContent:
    """The values on the page. `active`: the alerts that are on, and since when."""

    aet: str
    by_day: bool
    summary: ServiceSummary
    queue: Queue
    now: float
    alerts: AlertSettings | None
    active: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of one figure over the periods: (x, y, width, height) of each, and the height of a limit."""

    title: str
    spoken: str
    bars: tuple[tuple[float, float, float, float], ...]
    top: str
    limit: float | None


def render_service(content: ServiceContent) -> str:
    """The HTML document."""
    summary = content.summary
    return _TEMPLATE.render(
        content=content,
        summary=summary,
        now=summary.now,
        periods=summary.periods,
        charts=_charts(content),
        minimum=MIN_SCANS,
        sample=SAMPLE,
        day=lambda start: datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d"),
        share=share_text,
        called=_called_text,
        drift=lambda period: _figure_text(_largest_psi(period)),
        estimate=lambda estimate: "" if estimate is None else format_estimate(estimate, 2),
        span=lambda seconds: "–" if seconds is None else duration_text(max(0.0, seconds)),
        moment=time_text,
        figure=_figure_text,
        version=__version__,
        width=_WIDTH,
        height=_HEIGHT,
    )


def share_text(part: int, whole: int) -> str:
    """A share, or that there are too few for one."""
    if whole == 0:
        return "–"
    return f"{part} of {whole}" if whole < MIN_SCANS else f"{100 * part / whole:.0f} %"


def _called_text(period: Period, name: str) -> str:
    counts = period.counts
    return share_text(counts.called.get(name, 0), counts.scans - counts.declined)


def _figure_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _largest_psi(period: Period, *, answers: bool | None = None) -> float | None:
    """Of the columns that chance does not explain; 0 where it explains all of them, None where none can be judged.

    `answers`: of what the release answered, or of the scans and how they were acquired; None: of both.
    """
    known = [
        (shift.psi, shift.chance)
        for name, shift in period.shifts.items()
        if shift.psi is not None and shift.chance is not None
        if answers is None or answers == (name in _ANSWERS or name.startswith("probability of "))
    ]
    return max((psi if psi > chance else 0.0 for psi, chance in known), default=None)


def _charts(content: ServiceContent) -> list[Chart]:
    periods, alerts = content.summary.periods, content.alerts
    counts = [period.counts for period in periods]
    declined, drift = (None, None) if alerts is None else (alerts.declined, alerts.drift)
    figures: list[tuple[str, Sequence[float | None], str, float | None]] = [
        ("Studies", [one.studies for one in counts], "", None),
        ("Declined", [_share(one.declined, one.scans) for one in counts], "%", declined),
    ]
    for name in content.summary.labels:
        shares = [_share(one.called.get(name, 0), one.scans - one.declined) for one in counts]
        figures.append((f"Called {name}", shares, "%", None))
    for title, answers in (("Drift of the answers", True), ("Drift of the scans", False)):
        values = [_largest_psi(period, answers=answers) for period in periods]
        figures.append((f"{title}, largest PSI beyond chance", values, "", drift))
    for name, title in (("auc", "AUC"), ("sensitivity", "sensitivity"), ("ppv", "PPV")):
        if any(period.expected for period in periods):
            expected = [_value(period.expected.get(name)) for period in periods]
            figures.append((f"Expected {title}", expected, "" if name == "auc" else "%", None))
    waits = [one.p95_seconds for one in counts]
    figures.append(("Last image to answer, 95 % of studies", waits, "s", None))
    return [_chart(*one) for one in figures]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole >= MIN_SCANS else None


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate is not None and estimate.n >= MIN_SCANS else None


def _chart(title: str, values: Sequence[float | None], unit: str, limit: float | None) -> Chart:
    def text(value: float) -> str:
        return f"{100 * value:.0f} %" if unit == "%" else duration_text(value) if unit == "s" else f"{value:.3g}"

    known = [value for value in values if value is not None]
    top = max([*known, limit or 0.0]) or 1.0
    step = _WIDTH / len(values)
    heights = [None if value is None else _HEIGHT * value / top for value in values]
    bars = tuple(
        (round(step * place + 2, 1), round(_HEIGHT - height, 1), round(step - 4, 1), round(height, 1))
        for place, height in enumerate(heights)
        if height is not None
    )
    spoken = ", ".join("not known" if value is None else text(value) for value in values)
    return Chart(
        title,
        f"{title}, the oldest first: {spoken}",
        bars,
        text(top),
        None if limit is None else _HEIGHT * (1 - limit / top),
    )

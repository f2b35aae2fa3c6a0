"""Panels of a picture: how every picture of medopt is laid out, dressed and written.

A chart is written twice: as a PNG, for MLflow and notebooks, and as an SVG beside it, for the report. All its text has
one size, 12 px on a screen, as a page shows an SVG at its own size.

Colours are those of Okabe and Ito, which the colour-blind can tell apart. Drawn on `Figure` objects: nothing global is
set.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medopt.core.files import atomic
from medopt.figures.fonts import choose_fonts

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
GREY = "#666666"
SIZE = 9  # points, 12 px
PANEL = 4.6  # inches
WIDEST = 11.4  # inches, the report's page


@contextmanager
def figure_page(
    path: Path,
    count: int,
    title: str,
    *,
    caption: str = "",
    columns: int | None = None,
    height: float = PANEL,
    is_chart: bool = True,
) -> Iterator[list[Axes]]:
    """`count` empty panels between a title and a caption; written to `path` whole or not at all.

    A chart is written as an SVG, too, with the same name.
    """
    across = min(count, columns or (2 if count == 4 else 3))
    down = -(-count // across)
    figure = Figure(figsize=(min(PANEL * across, WIDEST), height * down + 0.5))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    figure.suptitle(title, fontsize=SIZE + 2)
    figure.supxlabel(_wrapped(caption, figure.get_figwidth()), fontsize=SIZE, color=GREY)
    panels = [figure.add_subplot(down, across, index + 1) for index in range(count)]
    for axes in panels:
        axes.tick_params(labelsize=SIZE)
    yield panels
    choose_fonts(figure)
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=150)
    if is_chart:
        # text as text, and the same bytes for the same chart
        with (
            rc_context({"svg.fonttype": "none", "svg.hashsalt": "medopt"}),
            atomic(path.with_suffix(".svg")) as part,
        ):
            figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})


def _wrapped(text: str, inches: float) -> str:
    """The text in lines that fit into a width."""
    letters = int(inches * 72 / (0.56 * SIZE))
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, letters))


def style_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Axis titles, a light grid, no box."""
    axes.set_xlabel(x, fontsize=SIZE)
    axes.set_ylabel(y, fontsize=SIZE)
    axes.set_title(title, fontsize=SIZE)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, place: Literal["upper left", "upper right", "lower left", "lower right", "best"]) -> None:
    """A legend that hides little of what lies beneath."""
    axes.legend(loc=place, fontsize=SIZE, framealpha=0.85, edgecolor="none")

"""A page of thumbnails: first the images that something is wrong with, then some of each split and label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medopt.config import Study
from medopt.core.files import atomic
from medopt.core.records import SPLITS, Case, FloatArray, Label
from medopt.figures.fonts import choose_fonts, drawn_labels
from medopt.manifest.duplicates import DuplicatePair, labels_differ, notable_pairs
from medopt.manifest.findings import display_name

COLUMNS = 8
MOST_PAIRS, MOST_FLAGGED, EACH = 12, 8, 8
TILE = 1.35  # inches
HEADING = 0.3  # of a row of tiles
RED, GREY = "#C00000", "#444444"
_SHORT = 20  # characters of a file's name


@dataclass(frozen=True, slots=True)
class _Tile:
    """One picture of the sheet: the case's index, what stands over it, and whether it is marked."""

    index: int
    text: str
    marked: bool = False


def draw_sheet(
    path: Path,
    cases: Sequence[Case],
    thumbnails: Mapping[int, FloatArray],
    study: Study,
    pairs: Sequence[DuplicatePair] = (),
    flagged: Mapping[int, str] | None = None,
) -> None:
    """Write the sheet as PNG, whole or not at all: pairs side by side and `flagged` images in red, then the rest.

    `flagged` maps an index to a word or two. Names are short file names, without identifiers.
    """
    blocks = [block for block in _blocks(cases, thumbnails, study, pairs, flagged or {}) if block[1]]
    heights = [height for _, tiles in blocks for height in (HEADING, *[1.0] * -(-len(tiles) // COLUMNS))] or [1.0]
    figure = Figure(figsize=(TILE * COLUMNS, TILE * 1.3 * sum(heights)))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), COLUMNS, left=0.01, right=0.99, top=0.995, bottom=0.005)
    grid.set_height_ratios(heights)
    grid.update(hspace=0.35)
    row = 0
    for title, tiles in blocks:
        heading = figure.add_subplot(grid[row, :])
        heading.axis("off")
        heading.text(0, 0.05, title, fontsize=10, weight="bold", color=RED if tiles[0].marked else "black")
        for number, tile in enumerate(tiles):
            axes = figure.add_subplot(grid[row + 1 + number // COLUMNS, number % COLUMNS])
            _draw(axes, thumbnails.get(tile.index), f"{_short(cases[tile.index])}\n{tile.text}", tile.marked)
        row += 1 + -(-len(tiles) // COLUMNS)
    choose_fonts(figure)
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=110)


def _blocks(
    cases: Sequence[Case],
    thumbnails: Mapping[int, FloatArray],
    study: Study,
    pairs: Sequence[DuplicatePair],
    flagged: Mapping[int, str],
) -> Iterator[tuple[str, list[_Tile]]]:
    pairs = notable_pairs(cases, pairs)
    worst = sorted(pairs, key=lambda pair: _weight(cases, pair))[:MOST_PAIRS]
    tiles = []
    for pair in worst:
        word = "same" if pair.exact else f"{pair.correlation:.4f}" + (" mirrored" if pair.mirrored else "")
        tiles += [_Tile(index, f"{_of(cases[index], study)}  {word}", True) for index in (pair.first, pair.second)]
    yield f"The same picture twice, side by side ({len(worst)} of {len(pairs)} pairs)", tiles
    some = list(flagged.items())[:MOST_FLAGGED]
    yield f"Wrong or unusual ({len(some)} of {len(flagged)})", [_Tile(index, word, True) for index, word in some]
    members: dict[tuple[str, tuple[Label, ...]], list[int]] = defaultdict(list)
    for index in thumbnails:
        members[cases[index].split, cases[index].label].append(index)
    for split, label in sorted(members, key=lambda key: (SPLITS.index(key[0]), _order(key[1]))):
        inside = members[split, label]
        spread = [inside[at] for at in np.linspace(0, len(inside) - 1, min(EACH, len(inside))).astype(int)]
        title = f"{split}, {_label(label, study)} ({len(inside)} images)"
        yield title, [_Tile(index, cases[index].site) for index in spread]


def _weight(cases: Sequence[Case], pair: DuplicatePair) -> tuple[bool, bool, float]:
    """The worst first: two labels, then two splits, then the most alike."""
    one, two = cases[pair.first], cases[pair.second]
    return not (pair.exact and labels_differ(one, two)), one.split == two.split, -pair.correlation


def _draw(axes: Axes, picture: FloatArray | None, text: str, marked: bool) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(text, fontsize=5.5, color=RED if marked else GREY, pad=2)
    for spine in axes.spines.values():
        spine.set(color=RED if marked else GREY, linewidth=1.8 if marked else 0.4)
    if picture is None:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=6, color=GREY, transform=axes.transAxes)
    else:
        axes.imshow(picture if picture.ndim == 2 else picture[len(picture) // 2], cmap="gray")


def _of(case: Case, study: Study) -> str:
    return f"{case.split}, {_label(case.label, study)[:10]}"


def _label(label: tuple[Label, ...], study: Study) -> str:
    labels = drawn_labels(study.data.labels)
    if study.data.task != "multilabel":
        return labels[label[0] or 0]
    told = [name if value else f"{name}?" for name, value in zip(labels, label, strict=True) if value != 0]
    return " + ".join(told) or "none"


def _order(label: tuple[Label, ...]) -> tuple[int, ...]:
    """By which labels are sorted; one that is not known comes first."""
    return tuple(-1 if one is None else one for one in label)


def _short(case: Case) -> str:
    """The end of the image's name."""
    name = display_name(case)
    last = name.rpartition("#")[2] if "#" in name else name.rpartition("/")[2]
    return last if len(last) <= _SHORT else f"...{last[-_SHORT + 3 :]}"

"""`medopt series`: what a DICOM folder holds, and which series a study's rules take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption
from medopt.core.format import count_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from medopt.config import Study
    from medopt.imaging.series_index import Series, SeriesIndex
    from medopt.imaging.series_rules import SeriesSelection

COLUMNS = (
    "study", "number", "modality", "description", "body part", "orientation", "images", "thickness", "size",
    "contrast", "image type", "rule",
)  # fmt: skip


def series(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of DICOM, as a PACS exports it.")],
    rules: Annotated[
        Path | None, typer.Option("--rules", help="A study file; its data.series says which series to take.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the series of a DICOM folder and, with rules, the one that is taken of every study and why.

    Exit code 3 where the rules leave no series of a study, or more than one. Identifiers are shown as pseudonyms.

    Example: medopt series export/ --rules lesions.yaml
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study
    from medopt.imaging.series_index import index_folder

    study = load_study(study_path(rules)) if rules else None
    with reporting() as reporter:
        index = index_folder(folder, reporter)
    selection = _selection(index.series, study) if study else None
    rows = [_row(series, selection) for series in index.series]
    _print(index, rows)
    refused = list(selection.refusals) if selection else []
    print_json(
        as_json, {"folder": str(folder), "series": rows, "other_files": len(index.other_files), "refused": refused}
    )
    if selection:
        selection.require_one_each()


def _selection(series: Sequence[Series], study: Study) -> SeriesSelection:
    from medopt.imaging.series_rules import select_series

    return select_series(series, study.data.series, may_miss=study.prepare.missing_channel == "zeros")


def _row(series: Series, selection: SeriesSelection | None) -> dict[str, Any]:
    """One series without identifiers."""
    from medopt.core.privacy import pseudonym
    from medopt.imaging.series_rules import hide_identifiers

    values = (
        pseudonym(series.study_uid),
        series.number,
        series.modality,
        hide_identifiers(series, series.description),
        series.body_part,
        series.orientation,
        series.frames,
        series.thickness_mm,
        list(series.size),
        series.contrast,
        list(series.image_type),
        selection.reasons[series.uid] if selection else "",
    )
    return dict(zip(COLUMNS, values, strict=True))


def _print(index: SeriesIndex, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console

    studies = len({one.study_uid for one in index.series})
    title = f"{index.root}: {len(rows)} series of {count_text(studies, 'study', 'studies')}, "
    title += count_text(len(index.other_files), "other file")
    said = [name for name in COLUMNS if any(row[name] not in ("", None, []) for row in rows)]
    table = Table(*said, title=title, title_justify="left")
    for row in rows:
        cells = [_shown(row[name]) for name in said]
        if "rule" in said:
            cells[-1].stylize("green" if str(row["rule"]).startswith("taken") else "dim")
        table.add_row(*cells)
    plain_console().print(table)


def _shown(value: object) -> Text:
    from rich.text import Text

    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, list):
        joint = " x " if value and isinstance(value[0], int) else "\\"
        return Text(joint.join(str(item) for item in value))
    return Text("" if value is None else f"{value:g}" if isinstance(value, float) else str(value))

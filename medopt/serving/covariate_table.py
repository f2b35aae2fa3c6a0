"""The covariates of scans out of a table (CSV): each row belongs to the scan whose path ends as its cell says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from medopt.config import Covariate
from medopt.core.errors import DataError
from medopt.imaging.channels import ScanPath, scan_name
from medopt.manifest.csv_text import read_csv

KEYS = ("path", "image")
WHAT = "The table of covariates"
Rows = dict[tuple[str, ...], tuple[int, dict[str, str]]]


def read_covariates(
    table: Path, covariates: Sequence[Covariate], scans: Sequence[ScanPath], channels: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The cells of each scan, none of a scan that has no row: they are missing then.

    The scan's path stands in the column path, or image as in a manifest; of a case of several images in image:NAME. It
    may begin at any folder above the scan. Raises DataError where the table cannot be read, where it lacks a
    covariate's column or has no row for any of the scans, where a row fits several scans, or two rows name one.
    """
    rows, names = _rows(table, [one.column for one in covariates], channels)
    found: list[dict[str, str]] = []
    taken: dict[int, str] = {}
    for scan in scans:
        number, cells = _row_of(scan, rows, table)
        if number in taken:
            raise DataError(
                f"{WHAT} {table}, row {number} fits {taken[number]} and {scan_name(scan)}: write more of the folders "
                "into its path."
            )
        if number:
            taken[number] = scan_name(scan)
        found.append(cells)
    if scans and not taken:
        raise DataError(
            f"{WHAT} {table} has no row for any of the scans. Its column {names} must hold their paths, from any "
            "folder above them on."
        )
    return found


def _rows(table: Path, columns: Sequence[str], channels: Sequence[str]) -> tuple[Rows, str]:
    """The covariates' cells by the parts of the path of each row, with its number; and the names of the key columns."""
    lines = read_csv(table, WHAT)
    header = next(lines, (1, []))[1]
    keys = [f"image:{name}" for name in channels] or list(KEYS)
    if twice := [name for name in header if name and header.count(name) > 1 and name in (*keys, *columns)]:
        raise DataError(f"{WHAT} {table} has the column {twice[0]} twice.")
    places = [header.index(name) for name in keys if name in header]
    if not places or any(name not in header for name in columns):
        needed = f"{' or '.join(keys)} and {', '.join(columns)}"
        raise DataError(
            f"{WHAT} {table} needs the columns {needed}; it has {', '.join(header)}. A cell may be empty where a value "
            "is not known."
        )
    rows: Rows = {}
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{WHAT} {table}, row {number} has {len(cells)} cells; the header has {len(header)}.")
        given = {name: cells[header.index(name)].strip() for name in columns}
        for path in {cells[place].strip() for place in places} - {""}:
            key = _key(path, table.parent)
            if key in rows:
                raise DataError(f"{WHAT} {table}, row {number} names the same scan as row {rows[key][0]}.")
            rows[key] = (number, given)
    return rows, " or ".join(keys)


def _key(text: str, folder: Path) -> tuple[str, ...]:
    """The parts of a path; one that leads upward begins at the table's folder."""
    path = PurePath(os.path.normpath(text))
    return PurePath(os.path.normpath(folder.resolve() / path)).parts if path.parts[:1] == ("..",) else path.parts


def _row_of(scan: ScanPath, rows: Rows, table: Path) -> tuple[int, dict[str, str]]:
    """The number and the cells of the row whose path is the longest end of a scan's; 0 and none where there is none."""
    images = [one for one in (scan if isinstance(scan, tuple) else (scan,)) if str(one)]
    fitting = []
    for image in images:
        parts = Path(os.path.normpath(Path.cwd() / image)).parts
        key = next((parts[at:] for at in range(len(parts)) if parts[at:] in rows), None)
        fitting += [rows[key]] if key else []
    if len({number for number, _ in fitting}) > 1:
        numbers = " and ".join(str(number) for number, _ in fitting[:2])
        raise DataError(f"{WHAT} {table}, rows {numbers} fit images of one case, {scan_name(scan)}.")
    return fitting[0] if fitting else (0, {})

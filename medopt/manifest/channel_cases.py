"""Cases of several images: a table whose columns image:NAME say which scans of a source belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medopt.core.errors import DataError, listed
from medopt.core.privacy import public_path
from medopt.manifest.label_join import FileIndex, RowMatches
from medopt.manifest.label_table import LabelTable
from medopt.manifest.sources.scan_listing import Scan, ScanListing, case_of
from medopt.manifest.table import IMAGE


def cases_of_table(listing: ScanListing, table: LabelTable, names: Sequence[str]) -> tuple[ScanListing, RowMatches]:
    """A case for each row of the table, with its images in the order of `names`; and which case a row means.

    An empty cell is a missing image. Scans that no row names are left out. Raises DataError naming the row and the
    column where a cell names no scan or several, and where a scan is named twice.
    """
    index, used = FileIndex(listing.scans), dict[int, tuple[int, str]]()
    cases = []
    for number, cells in table.rows:
        row = f"The table {table.path}, row {number}"
        channels: list[Scan | None] = []
        for column in (f"{IMAGE}:{name}" for name in names):
            place = _place(index, cells[column], f"{row}, column {column}")
            if place is not None:
                first = used.setdefault(place, (number, column))
                if first != (number, column):
                    raise DataError(
                        f"{row}, column {column}: this image is in row {first[0]}, column {first[1]}, too. Name each "
                        "image once."
                    )
            channels.append(None if place is None else listing.scans[place])
        if not any(channels):
            raise DataError(f"{row} names no image.")
        cases.append(case_of(tuple(channels)))
    left = [(scan.path, "in no row of the table") for at, scan in enumerate(listing.scans) if at not in used]
    listing = replace(
        listing, scans=tuple(cases), left_out=(*listing.left_out, *left), channel_names=tuple(names), label_columns=()
    )
    return listing, RowMatches("file", f"{IMAGE}:{names[0]}", tuple((at,) for at in range(len(cases))))


def _place(index: FileIndex, cell: str, where: str) -> int | None:
    if not cell:
        return None
    found = index.find(cell)
    if found is None or len(found) != 1:
        name = Path(cell.replace("\\", "/")).name
        raise DataError(f"{where}: {name} names {'several scans' if found is None else 'no scan'} of the source.")
    return found[0]


def refuse_torn_cases(scans: Sequence[Scan]) -> None:
    """Raise DataError where the images of a case are in several splits or folds of the source."""
    torn = [scan for scan in scans if len({(image.split, image.fold) for image in scan.images}) > 1]
    if torn:
        raise DataError(
            f"The images of {len(torn)} of {len(scans)} cases are in several splits of the source, such as "
            f"{listed([public_path(scan.images[0].path) for scan in torn], 3)}. Correct the table of cases, or draw "
            "the splits again: --resplit."
        )

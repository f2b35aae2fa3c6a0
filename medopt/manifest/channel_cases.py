"""Cases of several images: a table whose columns image:NAME say which scans of a source belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medopt.core.errors import ConfigError, DataError
from medopt.manifest.label_join import FileIndex, row_labels
from medopt.manifest.label_table import LabelTable
from medopt.manifest.label_words import LabelSpellings
from medopt.manifest.sources.scan_listing import Scan, ScanListing
from medopt.manifest.table import IMAGE


def cases_of_table(
    listing: ScanListing, table: LabelTable, names: Sequence[str], label_columns: Sequence[str]
) -> ScanListing:
    """The rows of the table as the scans of the listing: each with its images in the order of `names`, and its labels.

    An empty cell is a missing image. Scans that no row names are left out. Raises DataError naming the row and the
    column where a cell names no scan or several, where a scan is in two rows, and where the images of a row are of
    several patients; ConfigError for columns that the table does not have.
    """
    columns = tuple(table.column(name) for name in label_columns or ("label",))
    patient_column, index = table.patient_column(), FileIndex(listing.scans)
    used: dict[int, int] = {}
    cases = []
    for number, cells in table.rows:
        row = f"The table {table.path}, row {number}"
        places = [_place(index, cells[f"{IMAGE}:{name}"], f"{row}, column {IMAGE}:{name}") for name in names]
        for name, place in zip(names, places, strict=True):
            if place is not None and used.setdefault(place, number) != number:
                raise DataError(f"{row}, column {IMAGE}:{name}: this image is in row {used[place]}, too.")
        present = [listing.scans[place] for place in places if place is not None]
        if not present:
            raise DataError(f"{row} names no image.")
        if len({scan.patient for scan in present if scan.patient}) > 1:
            raise DataError(f"{row}: its images are of several patients, by their headers. Correct the table.")
        labels = tuple(cells[column] for column in columns)
        if len(columns) > 1:
            labels = row_labels(table, number, list(labels), columns, LabelSpellings({}))
        case = _case(present, cells[patient_column] if patient_column else "", labels)
        images = tuple("" if place is None else listing.scans[place].image for place in places)
        cases.append(replace(case, channels=images))
    left = [(scan.path, "in no row of the table") for at, scan in enumerate(listing.scans) if at not in used]
    named = ("label",) if len(columns) == 1 else columns
    return replace(listing, scans=tuple(cases), left_out=(*listing.left_out, *left), label_columns=named)


def _place(index: FileIndex, cell: str, where: str) -> int | None:
    if not cell:
        return None
    found = index.find(cell)
    if found is None or len(found) != 1:
        name = Path(cell.replace("\\", "/")).name
        raise DataError(f"{where}: {name} names {'several scans' if found is None else 'no scan'} of the source.")
    return found[0]


def _case(present: Sequence[Scan], patient: str, labels: tuple[str, ...]) -> Scan:
    """The scan of a case: what the first image says, with the files of all."""
    files = tuple(file for scan in present for file in scan.files)
    known = patient or next((scan.patient for scan in present if scan.patient), "")
    return replace(present[0], files=files, patient=known, labels=labels, volume=False)


def refuse_options(key: str, datalist: Path | None) -> None:
    """Raise ConfigError for options that cannot be followed where a table names the images of each case."""
    if key:
        raise ConfigError("--key: a table with columns image:NAME says by them which scans a row means.")
    if datalist is not None:
        raise ConfigError("--datalist writes one image a case; this table has several.")

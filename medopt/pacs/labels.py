"""True labels that arrive after the answers: kept in the ledger, the latest of each study or scan counts."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from medopt.core.errors import DataError, listed
from medopt.core.privacy import pseudonym
from medopt.pacs.ledger import Ledger, RowSource
from medopt.pacs.study_record import hidden
from medopt.release.layout import ReleaseInfo
from medopt.serving.service_performance import findings_of, label_columns, label_words

Key = tuple[str, str]
"""A study's UID and a scan's pseudonym; "" stands for all scans of the study."""
STUDY_COLUMNS = ("study", "study_uid", "accession")


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a table of labels brought: new ones, those known before, changed ones, and rows of no study here."""

    new: int
    known: int
    replaced: int
    elsewhere: int


def known_labels(ledger: RowSource) -> dict[Key, dict[str, int]]:
    """Which findings are there, and which are not, of each study or scan whose truth is known."""
    rows = ledger.rows("SELECT study_uid, scan, truth FROM labels ORDER BY id")
    return {(row["study_uid"], row["scan"]): json.loads(row["truth"]) for row in rows}


def label_of(labels: Mapping[Key, Mapping[str, int]], study_uid: str, scan: str) -> Mapping[str, int]:
    """The truth of a scan: its own label, else that of its study; empty where neither is known."""
    return labels.get((study_uid, scan)) or labels.get((study_uid, "")) or {}


def record_labels(ledger: Ledger, info: ReleaseInfo, table: Path, now: float, *, replace: bool = False) -> Feedback:
    """Add the labels of a CSV to the ledger, all or none.

    A row names its study by one of STUDY_COLUMNS (`study` is the pseudonym), maybe one of its scans (`scan`, the
    pseudonym, or `image`, the UID of the image or series), and the truth as `service_performance` takes it. An earlier
    label stays in the ledger when it is replaced. Raises DataError, naming rows and never what they hold, for labels
    that the release does not have, for such that contradict earlier ones without `replace`, and where no row is of a
    study here.
    """
    content, rows = _read(table, info)
    before, found, faults = known_labels(ledger), dict[Key, dict[str, int]](), defaultdict[str, list[str]](list)
    studies, elsewhere = _Studies(ledger), 0
    for number, row in enumerate(rows, start=2):
        keys, place = studies.keys_of(row), f"row {number}"
        if len(keys) != 1:
            elsewhere += not keys
            if keys:
                faults["belongs to several studies: name them by study or study_uid"].append(place)
            continue
        try:
            truth = findings_of(row, info)
        except KeyError:
            faults[f"has a label that is not {label_words(info)}"].append(place)
            continue
        if truth and found.setdefault(keys[0], truth) != truth:
            faults["contradicts an earlier row"].append(place)
    changed = [key for key, truth in found.items() if _contradicts(before.get(key, {}), truth)]
    if faults:
        raise DataError(f"{table}: {'; '.join(f'{listed(places)} {what}' for what, places in faults.items())}.")
    if rows and elsewhere == len(rows):
        raise DataError(f"{table}: no row is of a study that the node answered. Name studies as the ledger does.")
    if changed and not replace:
        raise DataError(
            f"{table}: {len(changed)} labels contradict those that the ledger has. Look which are right; --replace "
            "takes these, and keeps the earlier ones in the ledger."
        )
    merged = {key: before.get(key, {}) | truth for key, truth in found.items()}
    _write(ledger, {key: truth for key, truth in merged.items() if before.get(key) != truth}, content, now)
    new = sum(key not in before for key in found)
    return Feedback(new, len(found) - new - len(changed), len(changed), elsewhere)


def _contradicts(before: Mapping[str, int], truth: Mapping[str, int]) -> bool:
    """Whether a finding is there by one and not by the other; of several findings each may become known by itself."""
    return any(before.get(name, value) != value for name, value in truth.items())


class _Studies:
    """The studies of a ledger by each name that a table may give them."""

    def __init__(self, ledger: Ledger) -> None:
        self._named: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in ledger.rows("SELECT study_uid, accession FROM answers"):
            uid = row["study_uid"]
            for column, name in (("study", pseudonym(uid)), ("study_uid", uid), ("accession", row["accession"])):
                if name:
                    self._named[column, name].add(uid)

    def keys_of(self, row: Mapping[str, str]) -> list[Key]:
        """What a row may mean: one key, none, or several where its name does not tell studies apart."""
        scan = row.get("scan", "") or hidden(row.get("image", ""))
        for column in STUDY_COLUMNS:
            if name := row.get(column, ""):
                name = hidden(name) if column == "accession" else name
                return [(uid, scan) for uid in sorted(self._named.get((column, name), ()))]
        return []


def _read(table: Path, info: ReleaseInfo) -> tuple[bytes, Sequence[Mapping[str, str]]]:
    """The bytes of a table and its rows, without blanks around cells."""
    try:
        content = table.read_bytes()
        reader = csv.DictReader(StringIO(content.decode("utf-8-sig"), newline=""))
        rows = [{name: (cell or "").strip() for name, cell in row.items() if name} for row in reader]
        header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read ({type(error).__name__}). Give a CSV in UTF-8.") from None
    missing = [name for name in label_columns(info) if name not in header]
    if missing or not any(name in header for name in STUDY_COLUMNS):
        raise DataError(
            f"{table} needs a column {', '.join(label_columns(info))} and one that names the study "
            f"({', '.join(STUDY_COLUMNS)}); it has {', '.join(header) or 'none'}."
        )
    return content, rows


def _write(ledger: Ledger, labels: Mapping[Key, Mapping[str, int]], content: bytes, now: float) -> None:
    source = hashlib.sha256(content).hexdigest()
    with ledger.transaction() as db:
        db.executemany(
            "INSERT INTO labels (study_uid, scan, truth, source, at) VALUES (?, ?, ?, ?, ?)",
            [(*key, json.dumps(truth), source, now) for key, truth in labels.items()],
        )

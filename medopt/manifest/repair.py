"""Repair a manifest: images of one patient and copies of an image go into one split; unusable images are dropped."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.files import atomic, file_digest
from medopt.core.format import count_text
from medopt.core.records import SPLITS, Case, Split
from medopt.manifest.card import Card, load_card, relative_root, write_card
from medopt.manifest.csv_text import read_csv
from medopt.manifest.duplicates import DuplicatePair, label_conflicts


@dataclass(frozen=True, slots=True)
class Repair:
    """What to change, by the index of the case: the new split, and the reason for which a case is dropped."""

    moved: dict[int, Split]
    dropped: dict[int, str]

    def apply(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """The cases that are left, in their new splits."""
        kept = ((index, case) for index, case in enumerate(cases) if index not in self.dropped)
        return tuple(replace(case, split=self.moved.get(index, case.split)) for index, case in kept)


def plan_repair(cases: Sequence[Case], pairs: Sequence[DuplicatePair], unusable: Mapping[int, str]) -> Repair:
    """Drop unusable images and those with the same pixels under two labels; keep groups in one split.

    A group is all images connected by patients and duplicates. It goes to the split that has most of its images; of
    equal splits to train first, then val.
    """
    contradicting = dict.fromkeys(label_conflicts(cases, pairs), "the same pixels under two labels")
    dropped = contradicting | dict(unusable)
    links = [(pair.first, pair.second) for pair in pairs if not {pair.first, pair.second} & dropped.keys()]
    last: dict[str, int] = {}
    for index, case in enumerate(cases):
        if index not in dropped:
            links += [(last[case.patient_id], index)] if case.patient_id in last else []
            last[case.patient_id] = index
    moved: dict[int, Split] = {}
    for group in connected_groups(len(cases), links):
        counts = Counter(cases[index].split for index in group)
        if len(counts) > 1:
            target = max(SPLITS, key=lambda split: (counts[split], -SPLITS.index(split)))
            moved |= {index: target for index in group if cases[index].split != target}
    return Repair(moved, dict(sorted(dropped.items())))


def connected_groups(count: int, links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The indices below `count`, grouped by links between them; sorted, the groups by their first member.

    >>> connected_groups(6, [(4, 1), (1, 0), (5, 3)])
    [[0, 1, 4], [2], [3, 5]]
    """
    root = list(range(count))

    def top(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    for first, second in links:
        low, high = sorted((top(first), top(second)))
        root[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        groups[top(index)].append(index)
    return list(groups.values())


def write_repaired(manifest: Path, out: Path, repair: Repair) -> None:
    """Write the manifest with other splits and fewer rows, whole or not at all.

    Every other cell keeps its text, without blanks at its ends.

    Its card, if it has one, goes with it and says what was done. Raises DataError where `out` is the manifest itself,
    and where the card belongs to another manifest.
    """
    card = load_card(manifest)
    if out.exists() and out.samefile(manifest):
        raise DataError(f"--fix {out} is the manifest itself. Give another name, so that the original stays.")
    header, *rows = [cells for _, cells in read_csv(manifest, "The manifest")]
    split_at = header.index("split")
    written = []
    for index, cells in enumerate(rows):
        if index not in repair.dropped:
            new_split = repair.moved.get(index, cells[split_at])
            written.append([*cells[:split_at], new_split, *cells[split_at + 1 :]])
    with atomic(out) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(written)
    if card is not None:
        table = [dict(zip(header, cells, strict=False)) for cells in written]
        write_card(out.with_suffix(".card.yaml"), _repaired_card(card, manifest, out, repair, table))


def _repaired_card(card: Card, manifest: Path, out: Path, repair: Repair, rows: Sequence[Mapping[str, str]]) -> Card:
    """The card of a manifest for its repaired form: all that was known, what was done, and the counts anew."""
    reasons = Counter(reason.rstrip(".") for reason in repair.dropped.values())
    dropped = "".join(f", {count} dropped ({reason})" for reason, count in reasons.most_common())
    splits = Counter(row.get("split", "") for row in rows)
    note = (
        f"Repaired from {manifest.name} by medopt manifest check: {count_text(len(repair.moved), 'image')} moved "
        f"to another split{dropped or ', none dropped'}. Now {count_text(len(rows), 'row')}; "
        + ", ".join(f"{split} {splits[split]}" for split in SPLITS)
        + "."
    )
    classes = Counter(row.get("label", "") for row in rows)
    of_rows = [name for name, text in card.labels.items() if re.fullmatch(r"\d+ rows?", text)]
    counted = {name: count_text(classes[name], "row") for name in of_rows}
    root = relative_root(manifest.parent / card.root, out) if card.root else ""
    return card.model_copy(
        update={
            "labels": card.labels | counted,
            "notes": [*card.notes, note],
            "root": root,
            "manifest_sha256": file_digest(out),
        }
    )

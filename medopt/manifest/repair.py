"""A manifest mended: what shows the same, or the same patient, goes into one split; what cannot be used is dropped."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.files import atomic
from medopt.core.records import SPLITS, Case, Split
from medopt.manifest.duplicates import Pair, components, conflicts


@dataclass(frozen=True, slots=True)
class Repair:
    """What to change: the new split of cases by index, and the cases to drop with the reason."""

    moved: dict[int, Split]
    dropped: dict[int, str]

    def applied(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """The cases that are left, in their new splits."""
        kept = ((index, case) for index, case in enumerate(cases) if index not in self.dropped)
        return tuple(replace(case, split=self.moved.get(index, case.split)) for index, case in kept)


def plan_repair(cases: Sequence[Case], pairs: Sequence[Pair], unusable: Mapping[int, str]) -> Repair:
    """Drop what is unusable and what has the same pixels under two labels; keep groups in one split.

    A group is everything connected by patients and duplicates. It goes to the split that holds most of it; of equal
    ones to train first, then val.
    """
    contradicting = dict.fromkeys(conflicts(cases, pairs), "the same pixels under two labels")
    dropped = contradicting | dict(unusable)
    links = [(pair.first, pair.second) for pair in pairs if not {pair.first, pair.second} & dropped.keys()]
    last: dict[str, int] = {}
    for index, case in enumerate(cases):
        if index not in dropped:
            links += [(last[case.patient_id], index)] if case.patient_id in last else []
            last[case.patient_id] = index
    moved: dict[int, Split] = {}
    for group in components(len(cases), links):
        held = Counter(cases[index].split for index in group)
        if len(held) > 1:
            target = max(SPLITS, key=lambda split: (held[split], -SPLITS.index(split)))
            moved |= {index: target for index in group if cases[index].split != target}
    return Repair(moved, dict(sorted(dropped.items())))


def write_repaired(manifest: Path, out: Path, repair: Repair) -> None:
    """The manifest with other splits and fewer rows; every other cell as it stands, whole or not at all.

    Raises DataError where `out` is the manifest itself.
    """
    if out.exists() and out.samefile(manifest):
        raise DataError(f"--fix {out} is the manifest itself. Give another name: what was wrong has to stay visible.")
    with manifest.open(encoding="utf-8-sig", newline="") as stream:
        header, *rows = [cells for cells in csv.reader(stream) if any(cells)]
    at = [name.strip() for name in header].index("split")
    with atomic(out) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for index, cells in enumerate(rows):
            if index not in repair.dropped:
                writer.writerow([*cells[:at], repair.moved.get(index, cells[at]), *cells[at + 1 :]])

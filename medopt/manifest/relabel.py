"""Answers to suspected labels, taken back into a manifest: a new file, whose card says what was done."""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medopt.core.errors import DataError, listed
from medopt.core.files import atomic, file_digest
from medopt.core.format import count_text
from medopt.imaging.scan_path import safe_relative_path
from medopt.manifest.card import Card, load_card, relative_root, write_card
from medopt.manifest.csv_text import read_csv
from medopt.manifest.table import IMAGE

KEEP, REMOVE = "keep", "remove"
NEEDED = (IMAGE, "column", "given", "answer")


@dataclass(frozen=True, slots=True)
class Relabelled:
    """What answers did to a manifest: the changes by (column, old, new), and how many images went or were confirmed."""

    changed: Mapping[tuple[str, str, str], int]
    removed: int
    confirmed: int
    unanswered: int
    by_split: Mapping[str, int]

    @property
    def summary(self) -> str:
        """The same in a sentence."""
        changes = ", ".join(
            f"{count} {f'{column} ' if column != 'label' else ''}{old or 'unknown'} to {new}"
            for (column, old, new), count in self.changed.items()
        )
        splits = ", ".join(f"{split} {count}" for split, count in self.by_split.items())
        return (
            f"{count_text(sum(self.changed.values()), 'label')} changed{f' ({changes})' if changes else ''}"
            f"{f' in {splits}' if splits else ''}, {count_text(self.removed, 'image')} removed, "
            f"{count_text(self.confirmed, 'label')} confirmed, {self.unanswered} not answered"
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    row: int
    label: str
    text: str


def relabel(
    manifest: Path, answers: Path, out: Path, reader: str, rename: Mapping[str, str] | None = None
) -> Relabelled:
    """Write the manifest with the answers of `reader` in it, whole or not at all; all other cells keep their text.

    An answer is a label, `keep`, `remove`, or empty. `rename` are the study's other names of the manifest's labels. The
    card, if there is one, goes along with what was done appended. Raises DataError, naming rows, where an image is not
    in the manifest or its label there is not the one that was judged, where an answer is no known label or contradicts
    another, and where `out` is the manifest itself.
    """
    card = load_card(manifest)
    if out.exists() and out.samefile(manifest):
        raise DataError(f"--out {out} is the manifest itself. Give another name, so that the original stays.")
    header, *rows = [cells for _, cells in read_csv(manifest, "The manifest")]
    judgements, unanswered = _read_answers(answers)
    places = _places(header, rows)
    faults, changed, by_split = list[str](), Counter[tuple[str, str, str]](), Counter[str]()
    removed, confirmed = set[int](), 0
    for (image, column), answer in judgements.items():
        place = places.get(image)
        if place is None or column not in header:
            what = "the image is not in the manifest" if place is None else f"the manifest has no column {column}"
            faults.append(f"row {answer.row}: {what}")
            continue
        cells, at = rows[place], header.index(column)
        try:
            new = _new_cell(cells[at], answer, _known(rows, at, card, column), rename or {})
        except ValueError as error:
            faults.append(f"row {answer.row}: {error}")
            continue
        if new is None:
            removed.add(place)
        elif new == cells[at]:
            confirmed += 1
        else:
            changed[column, cells[at], new] += 1
            by_split[cells[header.index("split")] if "split" in header else "all"] += 1
            rows[place] = [*cells[:at], new, *cells[at + 1 :]]
    if faults:
        raise DataError(f"The answers {answers} cannot be taken into {manifest}: {listed(faults)}.")
    result = Relabelled(dict(changed), len(removed), confirmed, unanswered, dict(by_split))
    with atomic(out) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([header, *(cells for place, cells in enumerate(rows) if place not in removed)])
    if card is not None:
        write_card(out.with_suffix(".card.yaml"), _card_after(card, manifest, out, result, reader))
    return result


def _read_answers(path: Path) -> tuple[dict[tuple[str, str], _Answer], int]:
    """The answers by image and column, and how many rows have none."""
    header, *rows = read_csv(path, "The answers")
    missing = [name for name in NEEDED if name not in header[1]]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}. Give the suspects.csv of medopt manifest suspects, with "
            "its column answer filled in."
        )
    judgements, unanswered, faults = dict[tuple[str, str], _Answer](), 0, list[str]()
    for number, cells in rows:
        row = dict(zip(header[1], [*cells, *[""] * len(header[1])], strict=False))
        if not row["answer"]:
            unanswered += 1
            continue
        key, answer = (row[IMAGE], row["column"]), _Answer(number, row["given"], row["answer"])
        if judgements.setdefault(key, answer).text != answer.text:
            faults.append(f"row {number}: another answer than in row {judgements[key].row}, for the same image")
    if faults:
        raise DataError(f"The answers {path} contradict each other: {listed(faults)}.")
    return judgements, unanswered


def _places(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """The row of each image of the manifest; of a case of several images by each of them."""
    columns = [at for at, name in enumerate(header) if name == IMAGE or name.startswith(f"{IMAGE}:")]
    if not columns:
        raise DataError(f"The manifest has no column {IMAGE}.")
    rows_of: dict[str, int] = {}
    for place, cells in enumerate(rows):
        for at in columns:
            if cells[at]:
                rows_of[safe_relative_path(cells[at])] = place
    return rows_of


def _known(rows: Sequence[Sequence[str]], at: int, card: Card | None, column: str) -> set[str]:
    named = set(card.labels) if card and column == "label" else set()
    return named | {cells[at] for cells in rows} - {""} | ({"0", "1", "-1"} if column != "label" else set())


def _new_cell(cell: str, answer: _Answer, labels: set[str], rename: Mapping[str, str]) -> str | None:
    """What the cell becomes; None where the image is to be removed. Raises ValueError saying what is wrong."""
    if rename.get(cell, cell) != answer.label and cell != answer.label:
        raise ValueError(f"the manifest says {cell!r} where {answer.label!r} was judged; judge its labels again")
    if answer.text.lower() == REMOVE:
        return None
    if answer.text.lower() == KEEP or answer.text == answer.label:
        return cell
    if answer.text in labels:
        return answer.text
    back = sorted(old for old, new in rename.items() if new == answer.text and old in labels)
    if back:
        return back[0]
    if answer.text in rename.values():
        return answer.text
    near = difflib.get_close_matches(answer.text, sorted(labels), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(labels))}, {KEEP} and {REMOVE}"
    raise ValueError(f"the answer {answer.text!r} is not known: {hint}")


def _card_after(card: Card, manifest: Path, out: Path, result: Relabelled, reader: str) -> Card:
    note = f"Relabelled from {manifest.name} (sha256 {card.manifest_sha256[:16]}) by {reader}: {result.summary}."
    root = relative_root(manifest.parent / card.root, out) if card.root else ""
    return card.model_copy(update={"notes": [*card.notes, note], "root": root, "manifest_sha256": file_digest(out)})

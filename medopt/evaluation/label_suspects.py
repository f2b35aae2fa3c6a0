"""Labels that are probably wrong, as a table that a reader fills in."""

from __future__ import annotations

import csv
from pathlib import Path

from medopt.core.files import atomic
from medopt.core.format import count_text
from medopt.core.result import Result

ANSWERS = "suspects.csv"


class Suspect(Result):
    """One label that is probably wrong. `column` is that of the manifest; a multi-label study's labels are 0 and 1.

    `margin` is the probability of the given label less the largest other one.
    """

    rank: int
    image: str
    case_id: str
    split: str
    column: str
    given: str
    suggested: str
    probability_given: float
    probability_suggested: float
    margin: float


class Suspects(Result):
    """The suspected labels of runs, the most suspicious first; `judged` of `images` images were looked at."""

    study: str
    model: str
    runs: tuple[str, ...]
    images: int
    judged: int
    labels: int
    suspects: tuple[Suspect, ...]

    @property
    def summary(self) -> str:
        """Which images were judged, and how many labels are suspected."""
        left, runs = self.images - self.judged, count_text(len(self.runs), "run")
        summary = (
            f"{count_text(len(self.suspects), 'label')} of {self.labels} suspected. Judged: {self.judged} of "
            f"{count_text(self.images, 'image')}, each by {runs} ({self.model} model) that did not train on it."
        )
        return (
            f"{summary} {left} were trained on by every run: medopt run --folds judges them, too." if left else summary
        )


COLUMNS = (*Suspect.model_fields, "answer", "remark")


def write_answers(path: Path, suspects: Suspects) -> None:
    """Write the CSV that a reader fills in, whole or not at all: an empty `answer` and `remark` for each suspect."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in suspects.suspects:
            values = one.model_dump()
            cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in values.values()]
            writer.writerow([*cells, "", ""])

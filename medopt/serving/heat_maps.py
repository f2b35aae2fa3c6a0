"""`medopt predict --heatmaps DIR`: where the evidence for the findings of each scan lay, as PNG files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from medopt.core.errors import DataError
from medopt.core.files import atomic
from medopt.core.reporter import Reporter
from medopt.inference.evidence_map import Evidence
from medopt.release.evidence_picture import evidence_picture
from medopt.release.predictor import UNDECIDED, Answer, Release
from medopt.serving.prediction_table import Row


def write_heat_maps(release: Release, model: Path, rows: Sequence[Row], folder: Path, reporter: Reporter) -> int:
    """Write a picture for each finding that is present or undecided; returns how many. `model`: the ONNX file.

    Each scan is read a second time. Raises DataError where the network has no such map (an ensemble), StorageError.
    """
    evidence = Evidence.open(model)
    if evidence is None:
        raise DataError("This release's model does not average over positions, so no evidence can be shown for it.")
    labels = release.info.reported_labels
    advance = reporter.progress(len(rows), "heat maps")
    count = 0
    for number, row in enumerate(rows, start=1):
        findings = [] if row.answer is None else list(_mapped(row.answer, labels))
        if findings and row.answer is not None:
            volume = release.chain.read(row.path)
            places = evidence.places(release.prepare(volume)[0])
            if places is None:
                raise DataError(f"{row.path}: the network gives no evidence for a scan of this size.")
            for label in findings:
                shares = places - places.mean(axis=0) if release.info.task == "multiclass" else places
                probability = row.answer.probabilities[label]
                picture = evidence_picture(
                    release.info.prepare, label, probability, volume, shares[labels.index(label)]
                )
                with atomic(folder / f"{number:05}_{_plain(Path(row.path).stem)}_{_plain(label)}.png") as part:
                    Image.fromarray(picture).save(part, "PNG")
                count += 1
        advance(1)
    return count


def _mapped(answer: Answer, labels: Sequence[str]) -> Iterator[str]:
    if not answer.declined:
        decided = answer.decision.split(";")
        yield from (label for label in labels if answer.decision == UNDECIDED or label in decided)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:60]

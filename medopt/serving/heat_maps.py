"""Where the evidence for the findings of a scan lay, as pictures: `medopt predict --heatmaps DIR`, and the try page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medopt.core.errors import DataError
from medopt.core.files import atomic
from medopt.core.records import Volume, is_exclusive
from medopt.core.reporter import Reporter
from medopt.imaging.channels import ScanPath
from medopt.inference.evidence_map import AnyEvidence, Evidence
from medopt.release.evidence_picture import evidence_picture
from medopt.release.predictor import Answer, Release
from medopt.serving.prediction_table import Row


def write_heat_maps(
    release: Release, model: Path, scans: Sequence[ScanPath], rows: Sequence[Row], folder: Path, reporter: Reporter
) -> int:
    """Write a picture for each finding that is present or undecided; returns how many. `model`: the ONNX file.

    `rows` are the answers to `scans`. Each scan is read a second time. Raises DataError where the network has no such
    map (an ensemble), StorageError.
    """
    evidence = Evidence.open(model)
    if evidence is None:
        raise DataError("This release's model does not average over positions, so no evidence can be shown for it.")
    advance = reporter.progress(len(rows), "heat maps")
    count = 0
    for number, (scan, row) in enumerate(zip(scans, rows, strict=True), start=1):
        if row.answer is not None and mapped_labels(release, row.answer):
            volume = release.chain.read(scan)
            for label, picture in evidence_pictures(release, evidence, volume, row.answer, row.path):
                with atomic(folder / f"{number:05}_{_plain(Path(row.path).stem)}_{_plain(label)}.png") as part:
                    Image.fromarray(picture).save(part, "PNG")
                count += 1
        advance(1)
    return count


def evidence_pictures(
    release: Release, evidence: AnyEvidence, volume: Volume, answer: Answer, name: str
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The findings of an answer that are present or undecided, each with its picture (H, W, 3).

    Raises DataError where the network gives no evidence for a scan of this size; `name` is the scan's in the message.
    """
    labels = release.info.reported_labels
    places = evidence.places(release.prepare(volume)[0])
    if places is None:
        raise DataError(f"{name}: the network gives no evidence for a scan of this size.")
    for label in mapped_labels(release, answer):
        shares = places - places.mean(axis=0) if is_exclusive(release.info.task) else places
        probability = answer.probabilities[label]
        own, beside = shares[labels.index(label)], bool(release.info.covariates)
        yield label, evidence_picture(release.info.prepare, label, probability, volume, own, covariates=beside)


def mapped_labels(release: Release, answer: Answer) -> list[str]:
    """The findings that get a picture, the most probable first; none of a declined scan."""
    if answer.declined:
        return []
    decided = answer.decision.split(";")
    found = [label for label in release.info.reported_labels if answer.is_undecided(label) or label in decided]
    return sorted(found, key=lambda label: -answer.probabilities[label])


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:60]

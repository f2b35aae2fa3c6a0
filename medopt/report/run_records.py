"""What a run folder tells: every record that the pages are drawn from, read once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import DataError
from medopt.core.format import amount_text, unit_text
from medopt.core.records import SPLITS, Kind, Split, StageRecord
from medopt.evaluation.compression_front import CompressionFront
from medopt.evaluation.run_metrics import METRICS_FILE, RunMetrics


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Images and patients of a split, and its images by label and by site."""

    images: int
    patients: int
    labels: Mapping[str, int]
    sites: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunRecords:
    """A finished run. `front` is None where `medopt compress` did not choose the model of several."""

    folder: Path
    study: Study
    metrics: RunMetrics
    outcome: str
    stages: Mapping[str, StageRecord]
    splits: Mapping[Split, SplitCounts]
    front: CompressionFront | None

    @property
    def served(self) -> Kind:
        """The model that a release would serve."""
        return "int8"

    @property
    def figures(self) -> Path:
        """The run's pictures."""
        return self.folder / "figures"


def read_run(folder: Path) -> RunRecords:
    """Read a run folder; raises DataError where it holds no evaluated run."""
    if not (folder / METRICS_FILE).is_file() or not (folder / "study.yaml").is_file():
        raise DataError(
            f"{folder} holds no evaluated run: there is no {METRICS_FILE} in it. Give a run folder, as in "
            "runs/STUDY/TIME-HASH, or finish the run: the same `medopt run` goes on where it was."
        )
    study, front = load_study(folder / "study.yaml"), folder / "front.json"
    return RunRecords(
        folder=folder,
        study=study,
        metrics=RunMetrics.read(folder),
        outcome=str(_json(folder / "run.json").get("outcome", "")),
        stages={path.stem: StageRecord(**_json(path)) for path in sorted((folder / "stages").glob("*.json"))},
        splits=_splits(folder / "manifest.csv", study),
        front=CompressionFront.read(front) if front.exists() else None,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). The same `medopt run` writes it again.") from None


def _splits(path: Path, study: Study) -> dict[Split, SplitCounts]:
    """Images, patients and labels of each split, from the run's own manifest."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts: dict[Split, SplitCounts] = {}
    for split in SPLITS:
        part = [row for row in rows if row["split"] == split]
        if study.data.task == "multilabel":
            labels = _label_counts(part, rows, study)
        elif scale := study.number_scale:
            above = Counter(float(row[study.data.number.column]) > scale.threshold for row in part)
            limit = f"{amount_text(scale.threshold)}{unit_text(scale.unit)}"
            sides = (f"{study.data.labels[0]} (up to {limit})", f"{study.data.labels[1]} (above {limit})")
            labels = {name: above[is_above] for name, is_above in zip(sides, (False, True), strict=True)}
        else:
            labels = dict(Counter(row["label"] for row in part))
        sites = dict(sorted(Counter(row["site"] for row in part).items()))
        counts[split] = SplitCounts(len(part), len({row["patient_id"] for row in part}), labels, sites)
    return counts


def _label_counts(part: Sequence[Mapping[str, str]], rows: Sequence[Mapping[str, str]], study: Study) -> dict[str, int]:
    """How many rows have each label; and how many are uncertain or missing, of the labels that any row has so."""
    positive = ("1", "-1") if study.data.uncertain == "positive" else ("1",)
    counts: dict[str, int] = {}
    for name in study.data.labels:
        counts[name] = sum(row[name] in positive for row in part)
        for word, cell in (("uncertain", "-1"), ("missing", "")):
            if any(row[name] == cell for row in rows):
                counts[f"{name} {word}"] = sum(row[name] == cell for row in part)
    return counts

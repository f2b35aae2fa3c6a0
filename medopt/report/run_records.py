"""What a run folder tells: every record that the pages are drawn from, read once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medopt.core.errors import DataError

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecords:
    """A finished run. What a stage did not write, as it was off, is empty."""

    folder: Path
    study: Facts
    metrics: Facts
    outcome: str
    stages: Mapping[str, Facts]
    splits: Mapping[str, Facts]
    robustness: Facts
    domain: Facts
    explanations: Facts
    front: Facts
    pruning: Facts

    @property
    def served(self) -> str:
        """The model that a release would serve."""
        return "int8"

    @property
    def figures(self) -> Path:
        """The run's pictures."""
        return self.folder / "figures"


def read_run(folder: Path) -> RunRecords:
    """Read a run folder; raises DataError where it holds no evaluated run."""
    metrics = _json(folder / "metrics.json")
    if not metrics or not (folder / "study.yaml").is_file():
        raise DataError(
            f"{folder} holds no evaluated run: there is no metrics.json in it. Give a run folder, as in "
            "runs/STUDY/TIME-HASH, or finish the run: the same `medopt run` goes on where it was."
        )
    study = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    stages = {path.stem: _json(path) for path in sorted((folder / "stages").glob("*.json"))}
    return RunRecords(
        folder,
        study,
        metrics,
        str(_json(folder / "run.json").get("outcome", "")),
        stages,
        _splits(folder / "manifest.csv", study),
        _json(folder / "robustness.json"),
        _json(folder / "domain.json"),
        _json(folder / "explanations.json"),
        _json(folder / "front.json"),
        _json(folder / "pruning.json"),
    )


def newest_run(folder: Path) -> Path:
    """The folder itself where it is a run's, else the newest evaluated run below a study's folder."""
    runs = [path.parent for path in folder.glob("*/study.yaml") if (path.parent / "metrics.json").is_file()]
    return folder if (folder / "metrics.json").is_file() or not runs else max(runs, key=lambda path: path.name)


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). The same `medopt run` writes it again.") from None


def _splits(path: Path, study: Facts) -> dict[str, Facts]:
    """Images, patients and labels of each split, from the run's own manifest."""
    several = study["data"]["task"] == "multilabel"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found: dict[str, Facts] = {}
    for split in ("train", "val", "test"):
        part = [row for row in rows if row["split"] == split]
        if several:
            labels = {name: sum(row[name] == "1" for row in part) for name in study["data"]["labels"]}
        else:
            labels = dict(Counter(row["label"] for row in part))
        sites = dict(sorted(Counter(row["site"] for row in part).items()))
        patients = len({row["patient_id"] for row in part})
        found[split] = {"images": len(part), "patients": patients, "labels": labels, "sites": sites}
    return found

"""What a reviewer meets of a run in MLflow: its name, its tags, its figures, and the first page of its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.records import KINDS
from medopt.report.markdown_summary import first_page
from medopt.report.run_records import RunRecords

FEW = ("auc", "sensitivity", "specificity")


def model_name(study: Study) -> str:
    """`ResNet-26 w0.25`, and that it is 3-D where it is."""
    space = " 3-D" if len(study.prepare.size) == 3 else ""
    width = f" w{study.model.width:g}" if study.model.width != 1 else ""
    return f"ResNet-{study.model.depth}{width}{space}"


def run_name(study: Study, folder: Path, below: Path | None = None) -> str:
    """Study, model, seed and date, with what makes it the only one: a run is found by it again.

    `below` is the folder of the run or group that the run works in the folder of.
    """
    if below:
        return f"{study.name} {folder.name} {below.name}"
    day, _, rest = folder.name.partition("-")
    time, _, short = rest.partition("-")
    if not (len(day) == 8 and len(time) == 6 and (day + time).isdigit()):
        return f"{study.name} {folder.name}"
    fold = f" fold {study.data.fold}" if study.data.folds else ""
    moment = f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}:{time[4:]}"
    return f"{study.name} {model_name(study)} seed {study.seed}{fold} {moment} {short}"


def told_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that MLflow compares and draws: values without their intervals but the AUC's on test.

    Each becomes a chart, and those of one group stand together. All figures with all intervals are in `metrics.json`.
    """
    test = {kind: _values(metrics["test"][kind]) for kind in KINDS}
    for kind in KINDS:
        area = metrics["test"][kind]["auc"]
        test[kind] |= {"auc_low": area["low"], "auc_high": area["high"]}
    found = {
        "test": test,
        "validation": {kind: _values(metrics["validation"][kind], FEW) for kind in KINDS},
        "sites": {
            site: {kind: _values(one[kind], FEW) for kind in KINDS}
            for site, one in metrics["sites"].items()
            if len(metrics["sites"]) > 1
        },
        "time_ms": metrics["latency_ms"],
        "size_bytes": metrics["size_bytes"],
    }
    if worse := metrics.get("robustness"):
        found["robustness"] = {kind: _values(worse[kind], ("mean", "drop")) for kind in KINDS}
    return found


def _values(figures: Mapping[str, Any], names: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        name: one["value"] for name, one in figures.items() if isinstance(one, Mapping) and (not names or name in names)
    }


def told_tags(run: RunRecords) -> dict[str, str]:
    """What is known at the end: the description, the gate's word, and where it was trained."""
    gate = run.metrics["gate"]
    device = run.stages.get("train", {}).get("facts", {}).get("device", "")
    verdict = "passed" if gate["passed"] else "refused, released by name" if gate["override"] else "refused"
    found = {"mlflow.note.content": first_page(run), "gate": verdict}
    return found | ({"device": str(device)} if device else {})

"""What a reviewer meets of a run in MLflow: its name, its tags, its figures, and the first page of its report."""

from __future__ import annotations

from pathlib import Path

from medopt.config import Study
from medopt.core.records import KINDS
from medopt.evaluation.model_verdict import COVARIATES
from medopt.evaluation.run_metrics import RunMetrics
from medopt.metrics.figures import HEADLINE, RATES, Figures
from medopt.report.markdown_summary import first_page
from medopt.report.run_records import RunRecords


def model_name(study: Study) -> str:
    """`ResNet-26 w0.25`, and that it is 3-D where it is."""
    space = " 3-D" if len(study.prepare.size) == 3 else ""
    factors = study.model.width if isinstance(study.model.width, list) else [study.model.width]
    width = f" w{factors[-1]:g}" if factors != [1] else ""
    parts = "" if study.model.pooling == "none" else f" {'slices' if space else 'tiles'} {study.model.pooling}"
    return f"ResNet-{study.model.depth}{width}{space}{parts}"


def run_name(study: Study, folder: Path, below: Path | None = None) -> str:
    """What makes the run the only one first, since lists of runs cut long names; the study is its experiment's name.

    `20440ae7 seed 1 ResNet-26 w0.125 2026-11-28 18:01:54`; a run is found by it again. `below` is the folder of the run
    or group that the run works in the folder of.
    """
    if below:
        moment = _moment(below)
        return f"{moment[1]} {folder.name} {moment[0]}" if moment else f"{below.name} {folder.name}"
    moment = _moment(folder)
    if not moment:
        return f"{folder.name} {study.name}"
    fold = f" fold {study.data.fold}" if study.data.folds else ""
    return f"{moment[1]} seed {study.seed}{fold} {model_name(study)} {moment[0]}"


def _moment(folder: Path) -> tuple[str, str] | None:
    """When a run folder was made, and the hash in its name; None for another folder."""
    day, _, rest = folder.name.partition("-")
    time, _, short = rest.partition("-")
    if not (len(day) == 8 and len(time) == 6 and (day + time).isdigit()):
        return None
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}:{time[4:]}", short


def logged_figures(metrics: RunMetrics) -> dict[str, object]:
    """The figures that MLflow compares and draws: the headline, then values without intervals but the AUC's on test.

    Each becomes a chart, and those of one group stand together. All figures with all intervals are in `metrics.json`.
    """
    figures: dict[str, object] = {
        "headline": headline_figures(metrics),
        "test": {kind: _test_values(metrics.test[kind]) for kind in KINDS},
        "validation": {kind: _rates(metrics.validation[kind]) for kind in KINDS},
        "time_ms": metrics.latency_ms,
        "size_bytes": {kind: metrics.size_bytes[kind] for kind in KINDS},
    }
    if len(metrics.sites) > 1:
        sites = metrics.sites.items()
        figures["sites"] = {site: {kind: {"auc": one[kind].auc.value} for kind in KINDS} for site, one in sites}
    if robustness := metrics.robustness:
        figures["robustness"] = {
            kind: {"mean": robustness[kind].mean.value, "drop": robustness[kind].drop.value} for kind in KINDS
        }
    return figures


def unknown_labels(run: RunRecords) -> dict[str, object]:
    """How many labels of each split are uncertain or missing, by label; empty where every label is known."""
    if run.study.data.task != "multilabel":
        return {}
    words = [f"{name} {word}" for name in run.study.data.labels for word in ("uncertain", "missing")]
    counts = {
        split: {word: one.labels[word] for word in words if word in one.labels} for split, one in run.splits.items()
    }
    return {"unknown labels": counts} if any(counts.values()) else {}


def headline_figures(metrics: RunMetrics) -> dict[str, float | None]:
    """The few numbers by which runs are compared: of the network as trained, and with `_int8` of the int8 model."""
    test = {f"{name}_test": metrics.test.float[name].value for name in RATES}
    small = {f"{name}_test_int8": metrics.test.int8[name].value for name in RATES}
    if number := metrics.number:
        quantity = {"mae": number.float.mae, "mae_int8": number.int8.mae, "r2": number.float.r2}
    elif grades := metrics.grades:
        quantity = {"kappa": grades.float.kappa, "kappa_int8": grades.int8.kappa}
    else:
        quantity = {}
    test |= {f"{name}_test": one.value for name, one in quantity.items()}
    if metrics.covariates and metrics.baselines:
        beside = {
            "image_part": metrics.baselines.models.get("image"),
            COVARIATES: metrics.baselines.models.get(COVARIATES),
        }
        test |= {f"auc_test_{name}": one.auc.value for name, one in beside.items() if one}
    return {"auc_val": metrics.validation.float.auc.value} | test | small | {"time_ms_int8": metrics.served_ms.int8}


def _test_values(figures: Figures) -> dict[str, float | None]:
    values = {name: figures[name].value for name in (*HEADLINE, "brier", "ece")}
    return values | {"auc_low": figures.auc.low, "auc_high": figures.auc.high}


def _rates(figures: Figures) -> dict[str, float | None]:
    return {name: figures[name].value for name in RATES}


def final_tags(run: RunRecords) -> dict[str, str]:
    """What is known at the end: the description, the verdicts in a word, the epoch that was kept, and the device."""
    gate, model = run.metrics.gate, run.metrics.verdict
    by_name = ", released by name" if gate.override else ""
    tags = {"mlflow.note.content": first_page(run), "gate": gate.outcome + ("" if gate.passed else by_name)}
    if model:
        tags["model verdict"] = model.word + ("" if model.better_than_chance else by_name)
    if kept := run.metrics.kept:
        tags["kept epoch"] = kept.sentence
    trained = run.stages.get("train")
    device = trained.facts.get("device") if trained else None
    return tags | ({"device": str(device)} if device else {})

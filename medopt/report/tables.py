"""The tables of a report: headings and rows of text, nothing computed that the records do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medopt.report.format import UNDEFINED, difference, figure, note, plain, share
from medopt.report.run_records import RunRecords

KINDS = ("float", "int8")
FIGURES = (
    *("auc", "average_precision", "accuracy", "sensitivity", "specificity"),
    *("ppv", "npv", "f1", "brier", "ece", "ace"),
)


@dataclass(frozen=True, slots=True)
class ReportTable:
    """Rows of text under headings; `numbers` says from which column on figures stand. Notes go beneath."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: int = 1


def performance(run: RunRecords) -> ReportTable:
    """Every figure of both models on test, with that of validation beside it."""
    test, validation = run.metrics["test"], run.metrics["validation"]
    names = [name for name in FIGURES if name in test["float"]]
    rows = [
        [_called(name), *(figure(test[kind][name]) for kind in KINDS), figure(validation["int8"].get(name))]
        for name in names
    ]
    # A note of many figures is told once, with the names of those it is of.
    said: dict[str, list[str]] = {}
    for name in names:
        if text := note(test["int8"][name]):
            said.setdefault(text, []).append(_called(name))
    notes = [f"{', '.join(of)}: {text}." for text, of in said.items()]
    columns = ["figure", "float, test", "int8, test", "int8, validation"]
    return ReportTable("Performance", columns, rows, notes)


def _called(name: str) -> str:
    short = {"auc": "AUC", "ppv": "PPV", "npv": "NPV", "f1": "F1", "ece": "ECE", "ace": "ACE", "brier": "Brier score"}
    return short.get(name, plain(name))


def patients(run: RunRecords) -> ReportTable | None:
    """The figures of patients instead of images, where a patient has several."""
    told = run.metrics.get("patients", {})
    if any("test" not in told.get(kind, {}) for kind in KINDS):
        return None
    names = [name for name in FIGURES if name in told["float"]["test"]]
    rows = [[_called(name), *(figure(told[kind]["test"][name]) for kind in KINDS)] for name in names]
    by = f"A patient's answer is the {told['int8']['aggregate']}; decided anew on validation's patients."
    return ReportTable("By patient", ["figure", "float, test", "int8, test"], rows, [by])


def subgroups(run: RunRecords) -> ReportTable | None:
    """Sites and subgroups of the served model."""
    told = run.metrics.get("subgroups", {}).get(run.served)
    if not told or not told["variables"]:
        return None
    rows, notes = [], []
    for variable, groups in told["variables"].items():
        for name, one in groups.items():
            counts = f"{one['patients']} / {one['cases']}"
            if not one.get("auc"):
                rows.append([f"{variable}: {name}", counts, one["note"], "", "", ""])
                continue
            apart = one.get("difference") or {}
            rows.append(
                [
                    *(f"{variable}: {name}", counts, figure(one["auc"]), difference(apart.get("auc"))),
                    *(figure(one["sensitivity"], 2), figure(one["specificity"], 2)),
                ]
            )
    if told.get("note"):
        notes.append(told["note"])
    columns = ["group", "patients / images", "AUC", "AUC less that of all others", "sensitivity", "specificity"]
    return ReportTable(f"Sites and subgroups, {run.served}, test", columns, rows, notes)


def robustness(run: RunRecords) -> ReportTable | None:
    """AUC by family and level, both models."""
    if not run.robustness:
        return None
    rows = []
    for kind in KINDS:
        for family, one in run.robustness[kind]["families"].items():
            levels = [f"{level['value']:.3f}" if level["value"] is not None else UNDEFINED for level in one["auc"]]
            rows.append([f"{plain(family)}, {kind}", *levels, figure(one["drop"])])
    notes = [
        f"{kind}: clean {figure(run.robustness[kind]['clean'])}, mean over all families and levels "
        f"{figure(run.robustness[kind]['mean'])}, {figure(run.robustness[kind]['drop'])} lower."
        for kind in KINDS
    ]
    columns = ["made worse by", *(f"level {level}" for level in range(1, 6)), "mean lower by"]
    return ReportTable(f"AUC of {run.robustness['cases']} test images made worse", columns, rows, notes)


def front(run: RunRecords) -> ReportTable | None:
    """What `medopt compress` tried, on validation."""
    if not run.front:
        return None
    rows = [
        [
            f"{one['name']}{' (chosen)' if one['name'] == run.front['chosen'] else ''}",
            figure(one["auc"]),
            difference(one["auc_difference"]),
            share(one["decision_flips"]),
            f"{one['latency_ms']:.2f}",
            f"{one['size_bytes'] / 1e6:.2f}",
            f"{one['multiply_adds'] / 1e6:.1f}",
            "; ".join(one["faults"]),
        ]
        for one in run.front["options"]
    ]
    heads = ("option", "AUC", "less float", "decisions that flip", "ms", "MB", "million multiply-adds", "refused, as")
    title = f"Options on {run.front['validation_cases']} validation images"
    return ReportTable(title, heads, rows, ["Times are medians of interleaved runs at batch 1, in the faster engine."])


def domain(run: RunRecords) -> ReportTable | None:
    """What the gate before the answer declines."""
    if not run.domain:
        return None
    told = run.domain["declined"][run.served]
    rows = [["validation, as it is", share(told["validation"])], ["test, as it is", share(told["test"])]]
    rows += [[f"test, {site}", share(one)] for site, one in told["sites"].items()]
    rows += [[f"test, {plain(name)}", share(one)] for name, one in run.domain["altered"].items()]
    notes = [f"Set to decline {100 * run.domain['false_alarm']:g} % of good scans; limits from validation."]
    return ReportTable("Scans that are declined", ["images", "declined"], rows, notes)


def data(run: RunRecords) -> ReportTable:
    """Who is in which split."""
    labels = list(dict.fromkeys(name for split in run.splits.values() for name in split["labels"]))
    rows = []
    for split, told in run.splits.items():
        sites = ", ".join(f"{site} {count}" for site, count in told["sites"].items())
        counts = [str(told["labels"].get(name, 0)) for name in labels]
        rows.append([split, str(told["patients"]), str(told["images"]), *counts, sites])
    return ReportTable("Data", ["split", "patients", "images", *map(plain, labels), "sites"], rows)


def speed(run: RunRecords) -> ReportTable:
    """Time of an image in each engine, and how long the run took."""
    rows = [[plain(name), f"{value:.3g} ms"] for name, value in run.metrics["latency_ms"].items()]
    rows += [[f"stage {name}", f"{one.get('seconds', 0):.1f} s"] for name, one in run.stages.items()]
    machine = run.metrics["machine"]
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    return ReportTable("Times", ["what", "time"], rows, [f"Median of one image at a time, on: {where}."])


def provenance(run: RunRecords) -> ReportTable:
    """What was run, with what."""
    rows = [
        ["study", str(run.study["name"])],
        ["seed", str(run.metrics["seed"])],
        ["run", run.folder.name],
        ["MLflow run", str(run.metrics["mlflow_run_id"])],
        *([name, str(version)] for name, version in run.metrics["packages"].items()),
    ]
    return ReportTable("Where it comes from", ["what", "value"], rows)


def settings(study: Mapping[str, Any]) -> ReportTable:
    """The study file, resolved, one row a setting."""
    return ReportTable("Every setting", ["setting", "value"], [[key, str(value)] for key, value in _leaves(study, "")])


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, place)
        else:
            yield place, value

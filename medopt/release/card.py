"""The model card of a release, as JSON and as Markdown, from the run's own records.

The parts are those of Mitchell et al. 2019 (Model Cards for Model Reporting). Only the intended use is the people's who
release it: where the study does not say it, the card says that it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medopt.release.layout import ReleaseInfo
from medopt.release.reporting_guidelines import COVERED, LEFT

MISSING = "to be filled in by whoever puts this release into service (`intended_use` in the study file)"
FIGURES = ("auc", "average_precision", "accuracy", "sensitivity", "specificity", "ppv", "npv", "brier", "ece")


def card_facts(info: ReleaseInfo) -> dict[str, Any]:
    """What the card says, as JSON."""
    figures, int8 = info.figures, info.models["int8"]
    return {
        "name": info.study,
        "question": info.question,
        "intended_use": info.intended_use or MISSING,
        "status": "Research software, not a medical device.",
        "created": info.created,
        "model": {
            "task": info.task,
            "labels": info.labels,
            "input": info.prepare.model_dump(mode="json"),
            "chain_fingerprint": info.chain_fingerprint,
            "served": "int8",
            "calibration": int8.calibration.told(),
            "threshold": int8.threshold,
            "rule": int8.rule,
            "undecided_between": int8.band,
            "engines": int8.engines,
            "gate": info.gate,
            "pruning": figures.get("pruning", {}),
            "size_bytes": figures["size_bytes"],
            "latency_ms": figures["latency_ms"],
        },
        "confidence": figures["confidence"],
        "performance": {kind: {name: figures["test"][kind][name] for name in FIGURES} for kind in info.models},
        "sites": {site: found["int8"]["auc"] for site, found in figures["sites"].items()},
        "subgroups": figures.get("subgroups", {}).get("int8", {}),
        "calibration": figures.get("calibration", {}).get("int8", {}),
        "robustness": figures.get("robustness", {}),
        "declines": figures.get("domain", {}),
        "explanation": figures.get("explanations", {}).get("sanity", {}),
        "known_of_the_data": info.provenance.get("data_notes", []),
        "provenance": {key: value for key, value in info.provenance.items() if key != "data_notes"},
        "guidelines": {
            "covered": [{"item": item, "what": what, "where": where} for item, what, where in COVERED],
            "left_to_the_authors": list(LEFT),
        },
    }


def render_card(facts: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    return "\n".join([*_head(facts), *_figures(facts), *_limits(facts), *_model(facts), *_origin(facts), ""])


def _head(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# {facts['name']}", "", f"{facts['question']} {facts['status']}", "")
    yield from _override(facts)
    yield from (f"**Intended use**: {facts['intended_use']}.".replace("..", "."), "")


def _figures(facts: Mapping[str, Any]) -> Iterator[str]:
    level = f"{100 * facts['confidence']:g} %"
    yield from ("## Performance on the test split, scored once", "")
    yield from (f"| figure ({level} interval) | float | int8 |", "|---|---|---|")
    for name in FIGURES:
        both = [shown(facts["performance"][kind][name]) for kind in ("float", "int8")]
        yield f"| {name.replace('_', ' ')} | {' | '.join(both)} |"
    yield from ("", "## By site (AUC, int8)", "", "| site | AUC | cases |", "|---|---|---|")
    for site, auc in facts["sites"].items():
        yield f"| {site} | {shown(auc)} | {auc['n']} |"
    yield ""


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Where it is weak", "")
    groups = facts["subgroups"]
    if worst := groups.get("worst"):
        yield f"- Lowest AUC: {worst['variable']} {worst['group']}, {shown(worst['auc'])}. {groups['note']}"
    else:
        yield f"- Subgroups: {groups.get('note', 'none are known')}."
    if worse := facts["robustness"].get("int8"):
        yield (
            f"- On test images made worse in {len(worse['families'])} ways at five levels: AUC {shown(worse['mean'])}, "
            f"{shown(worse['drop'])} lower than on the clean ones."
        )
    if declined := facts["declines"].get("declined", {}).get("int8"):
        yield f"- It declines scans unlike those of its training: {shown(declined['test'])} of the test images."
    if after := facts["calibration"].get("after"):
        yield f"- Expected calibration error on test: {after['ece']:.3f}."
    yield from (f"- {note}" for note in facts["known_of_the_data"])
    yield ""


def _model(facts: Mapping[str, Any]) -> Iterator[str]:
    model, prepare = facts["model"], facts["model"]["input"]
    size, spacing = " x ".join(map(str, prepare["size"])), prepare["spacing_mm"]
    yield from ("## Model and chain", "", f"- Labels: {', '.join(model['labels'])} ({model['task']}).")
    yield (
        f"- Input: {prepare['channels']} x {size}{f', resampled to {spacing} mm' if spacing else ''}, fitted by "
        f"`{prepare['fit']}`, intensities by `{prepare['intensity']['method']}`."
    )
    yield f"- Chain fingerprint: `{model['chain_fingerprint']}`."
    yield f"- int8: {model['calibration']}, threshold {model['threshold']} ({model['rule']}), all from validation."
    if model["pruning"]:
        last = list(model["pruning"].values())[-1]
        left = 100 * last["multiply_adds"]["share"]
        yield f"- int8 is pruned: {left:.0f} % of the multiply-adds of the float network, trained on afterwards."
    if model["undecided_between"]:
        yield "- Undecided between {:.3f} and {:.3f}.".format(*model["undecided_between"])
    yield f"- Engines that passed the gate: {', '.join(model['engines'])}."
    gate = model["gate"]
    if layers := gate.get("in_float"):
        yield f"- {len(layers)} layers of the int8 model compute in float, which the gate asked for."
    yield from (f"- Gate: {'passed' if gate['passed'] else 'REFUSED: ' + '; '.join(gate['reasons'])}.", "")


def _override(facts: Mapping[str, Any]) -> Iterator[str]:
    """First of all on the card: somebody took it on himself to release what the gate refused."""
    gate = facts["model"]["gate"]
    if told := gate.get("override"):
        yield f"**The gate refused this int8 model** ({'; '.join(gate['reasons'])})."
        yield from (f"**Released all the same by {told['by']}** on {told['at'][:10]}: {told['reason']}", "")


def _code(code: Mapping[str, Any]) -> str:
    """As `code_version` tells it, in words."""
    commit = f", commit `{code['commit']}`" if "commit" in code else ""
    changed = "" if code.get("clean", True) else " with changes that are in no commit"
    return f"medopt {code['version']}{commit}{changed}"


def _origin(facts: Mapping[str, Any]) -> Iterator[str]:
    told = facts["provenance"]
    yield from ("## Where it comes from", "", f"- Built {facts['created']} by {_code(told['code'])}.")
    yield f"- Manifest digest `{told['manifest_digest']}`, MLflow run `{told['mlflow_run_id']}`."
    yield f"- Packages: {', '.join(f'{name} {version}' for name, version in told['packages'].items())}."
    covered = [f"{one['item']} ({one['what']})" for one in facts["guidelines"]["covered"]]
    yield from ("", "## Reporting guidelines", "", f"Covered here and in the report: {'; '.join(covered)}.", "")
    yield f"Left to the authors: {'; '.join(facts['guidelines']['left_to_the_authors'])}."


def shown(estimate: Mapping[str, Any]) -> str:
    """A figure with its interval as people write it: 0.912 (0.871-0.944)."""
    if estimate["value"] is None:
        return f"not defined ({estimate.get('note', '')})"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    to = "-" if estimate["low"] >= 0 else " to "
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}{to}{estimate['high']:.3f})"

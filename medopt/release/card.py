"""The release's card: what it is for, what it reached and where its limits lie, written from the run's own records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medopt.release.contents import ReleaseInfo


def render_card(info: ReleaseInfo) -> str:
    """Markdown; every figure comes from `info`, only the intended use is left to the people who release it."""
    prepare, int8 = info.prepare, info.models["int8"]
    size = " x ".join(str(side) for side in prepare.size)
    spacing = f", resampled to {prepare.spacing_mm} mm" if prepare.spacing_mm else ""
    passed = "passed" if info.gate["passed"] else "REFUSED: " + "; ".join(info.gate["reasons"])
    lines = [
        f"# {info.study}",
        "",
        f"{info.question} Research software, not a medical device.",
        "",
        "**Intended use**: to be filled in by whoever puts this release into service.",
        "",
        "## Performance on the test split, scored once",
        "",
        "| figure (95 % interval) | float | int8 |"
        if info.figures["confidence"] == 0.95
        else "| figure | float | int8 |",
        "|---|---|---|",
        *_rows(info.figures["test"]),
        "",
        "## By site (AUC, int8)",
        "",
        "| site | AUC | cases |",
        "|---|---|---|",
        *_site_rows(info.figures["sites"]),
        "",
        "## Model and chain",
        "",
        f"- Labels: {', '.join(info.labels)} ({info.task}).",
        f"- Input: {prepare.channels} x {size}{spacing}, fitted by `{prepare.fit}`, intensities by "
        f"`{prepare.intensity.method}`.",
        f"- Chain fingerprint: `{info.chain_fingerprint}`.",
        f"- int8: {int8.calibration.told()}, threshold {int8.threshold} ({int8.rule}), both from validation.",
        *([f"- Left undecided: probabilities from {int8.band[0]:.4g} up to {int8.band[1]:.4g}."] if int8.band else []),
        f"- Engines that passed the gate: {', '.join(int8.engines)}.",
        f"- Gate: {passed}.",
        "",
        "## Known of the data",
        "",
        *([f"- {note}" for note in info.provenance.get("data_notes", [])] or ["- Nothing was noted."]),
        "",
        "## Where it comes from",
        "",
        f"- Built {info.created}, code {info.provenance['code']}.",
        f"- Manifest digest `{info.provenance['manifest_digest']}`, MLflow run `{info.provenance['mlflow_run_id']}`.",
        f"- Packages: {', '.join(f'{name} {version}' for name, version in info.provenance['packages'].items())}.",
        "",
    ]
    return "\n".join(lines)


def _rows(test: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = ("auc", "average_precision", "accuracy", "sensitivity", "specificity", "brier")
    return [
        f"| {name.replace('_', ' ')} | {shown(test['float'][name])} | {shown(test['int8'][name])} |" for name in names
    ]


def _site_rows(sites: Mapping[str, Mapping[str, Any]]) -> list[str]:
    figures = {site: found["int8"]["auc"] for site, found in sites.items()}
    return [f"| {site} | {shown(auc)} | {auc['n']} |" for site, auc in figures.items()]


def shown(estimate: Mapping[str, Any]) -> str:
    """A figure with its interval as people write it: 0.912 (0.871-0.944)."""
    if estimate["value"] is None:
        return f"not defined ({estimate.get('note', '')})"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    to = "-" if estimate["low"] >= 0 else " to "
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}{to}{estimate['high']:.3f})"

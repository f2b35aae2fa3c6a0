"""Write a plan as a study file: YAML with the reason behind each setting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError
from medopt.core.files import write_text
from medopt.core.format import count_text
from medopt.planning.fingerprint import Fingerprint
from medopt.planning.size import Decision

_COLUMN = 56


def write_plan(
    out: Path, manifest: Path, root: Path, inferred: Study, fingerprint: Fingerprint, decisions: Sequence[Decision],
    notes: Sequence[str] = (),
) -> Study:  # fmt: skip
    """Write the study file with `notes` at its head, and return the study read back from it.

    Raises ConfigError where `out` exists and was not planned: a study file may contain somebody's work.
    """
    head = "# Planned by medopt from "
    if out.exists() and not out.read_text(encoding="utf-8", errors="replace").startswith(head):
        raise ConfigError(f"{out} is there already and was not planned, so it is not written over. Give another --out.")
    lines = _lines(out, manifest, root, inferred, fingerprint, decisions, notes)
    write_text(out, f"{head}{manifest.name}.\n" + "\n".join(lines) + "\n")
    return load_study(out)


def _lines(
    out: Path, manifest: Path, root: Path, inferred: Study, fingerprint: Fingerprint, decisions: Sequence[Decision],
    notes: Sequence[str],
) -> list[str]:  # fmt: skip
    where = "on this machine; elsewhere, the folder there" if root.is_absolute() else "below --data or MEDOPT_DATA"
    lines = [f"# {line}" for line in (*describe_fingerprint(fingerprint), *notes)]
    lines += [
        "# Every choice can be changed; medopt run STUDY --dry-run shows the settings that are not listed here.",
        f"name: {inferred.name}",
        _line("question", inferred.question, ""),
        "data:",
        _line("  manifest", os.path.relpath(str(manifest), str(out.parent)), ""),
        _line("  root", str(root), where),
    ]
    if inferred.data.task != "binary":
        lines.append(_line("  task", inferred.data.task, ""))
    second = "the second is the finding" if inferred.data.task == "binary" else ""
    if inferred.data.task == "regression":
        column = {"column": inferred.data.number.column, "unit": inferred.data.number.unit}
        lines.append(_line("  number", column, "its UCUM unit, as in a (years), mm3, mL; threshold: the median"))
    else:
        lines.append(_line("  labels", inferred.data.labels, second))
    if inferred.data.rename:
        lines.append(_line("  rename", inferred.data.rename, "labels of the manifest, and what they are called here"))
    for section, members in groupby(decisions, key=lambda decision: decision.key.partition(".")[0]):
        lines.append(f"{section}:")
        lines += [_line("  " + decision.key.partition(".")[2], decision.value, decision.reason) for decision in members]
    return lines


def describe_fingerprint(fingerprint: Fingerprint) -> list[str]:
    """The fingerprint in a few sentences."""
    counts = "; ".join(
        f"{split} {labels['']} ({', '.join(f'{name} {count}' for name, count in labels.items() if name)})"
        for split, labels in fingerprint.counts.items()
    )
    low, high = fingerprint.sizes(0), fingerprint.sizes(1)
    spacing = fingerprint.spacing_mm()
    scans = " x ".join(
        f"{small:.0f}" if small == large else f"{small:.0f}-{large:.0f}" for small, large in zip(low, high, strict=True)
    )
    in_mm = f", median spacing {' x '.join(f'{value:.3g}' for value in spacing)} mm" if spacing else ", spacing unknown"
    odd = [
        f"Left out of the plan, because spacing or extent is far from all others: {text}. Is its header right?"
        for text in fingerprint.odd
    ]
    return [
        f"{count_text(fingerprint.images, 'scan')} of {count_text(fingerprint.patients, 'patient')}, "
        f"{count_text(len(fingerprint.sites), 'site')}: {counts}.",
        f"{count_text(len(fingerprint.sample), 'training scan')} read: {fingerprint.modality or 'modality unknown'}, "
        f"{fingerprint.dims}-D, {scans} pixels{in_mm}.",
        *odd,
    ]


def _line(key: str, value: Any, reason: str) -> str:
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    line = f"{key}: {text.removesuffix('...').strip()}"
    return f"{line:<{_COLUMN}}  # {reason}" if reason else line

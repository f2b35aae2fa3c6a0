"""What a check of the data found: findings, which of them a study accepts by name, and how they name an image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Literal

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError
from medopt.core.privacy import pseudonym, public_path
from medopt.core.records import Case

ACCEPTABLE = (
    "patient_overlap",
    "exact_duplicates",
    "near_duplicates",
    "label_conflict",
    "site_predicts_label",
    "minority_modality",
    "mixed_intents",
)
"""Findings that a study may accept by name, in `data.accept`: they bias a score, but leave it defined."""

ACCEPTED = "accepted by the study"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a study's data. A `note` refuses nothing, often because the study accepted it."""

    name: str
    severity: Literal["refuse", "note"]
    text: str


def accept_findings(findings: Iterable[Finding], study: Study) -> list[Finding]:
    """The findings, with those that the study accepts by name turned into notes.

    Raises ConfigError where `study.data.accept` names a finding that cannot be accepted.
    """
    for name in study.data.accept:
        if name not in ACCEPTABLE:
            near = get_close_matches(name, ACCEPTABLE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a study may accept {', '.join(ACCEPTABLE)}."
            raise ConfigError(f"data.accept: {name!r} is not a finding that can be accepted: {hint}")
    return [replace(item, severity="note") if item.name in study.data.accept else item for item in findings]


def refuse_findings(findings: Iterable[Finding], study: Study) -> None:
    """Raise DataError with every finding of severity `refuse`, if there are any."""
    texts = [f"{item.name}: {item.text}" for item in findings if item.severity == "refuse"]
    if texts:
        raise DataError(f"The data of study {study.name} are refused. " + " ".join(texts))


def finding_text(finding: Finding, study: Study) -> str:
    """A note as reports show it: its name, whether the study accepted it, and its text."""
    by = f", {ACCEPTED}" if finding.name in study.data.accept else ""
    return f"{finding.name}{by}: {finding.text}"


def display_name(case: Case) -> str:
    """The path of an image without identifiers: UIDs and the patient's own number in it become pseudonyms."""
    name, mark, member = case.image.partition("#")
    parts = [_display_part(part, case) for part in name.split("/")]
    return public_path("/".join(parts)) + mark + (pseudonym(member) if _is_uid(member) else member)


def _display_part(part: str, case: Case) -> str:
    stem = part if _is_uid(part) else PurePosixPath(part).stem
    if _is_uid(stem):
        return pseudonym(stem) + part.removeprefix(stem)
    if pseudonym(case.image) == case.patient_id:  # each image counts as a patient: its name is no patient's number
        return part
    if case.patient_id in (pseudonym(stem), pseudonym(part)):
        return case.patient_id + (part.removeprefix(stem) if pseudonym(stem) == case.patient_id else "")
    return part


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+){4,}", text) is not None

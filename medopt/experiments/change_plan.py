"""A predetermined change control plan that is obeyed: what may change in a model, and within which bounds.

After the FDA's guidance Marketing Submission Recommendations for a Predetermined Change Control Plan for
Artificial-Intelligence-Enabled Device Software Functions (2024): a plan describes the modifications, the protocol that
each is tested by, and its acceptance criteria. Here the protocol is the paired comparison with the present champion on
its test cases, and the criteria are non-inferiority margins for its intervals.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from medopt.config import Study
from medopt.config.section import Fraction, Section
from medopt.core.errors import ConfigError
from medopt.core.format import format_difference, format_share
from medopt.evaluation.comparison import Comparison, PairedFigures
from medopt.evaluation.shadow_trial import ShadowReport
from medopt.pacs.audit import AuditFile, verify

RECORD = "changes.jsonl"
Figure = Literal["auc", "sensitivity", "specificity"]


class ShadowDemand(Section):
    """What a shadow trial of the version beside the champion has to show (`medopt shadow report --out FILE.json`)."""

    patients: int = Field(30, ge=2)
    """Minimum number of patients whom both answered."""
    agreement: Fraction = 0.9
    """The whole interval of the share of scans with the same decision must lie above."""
    declined: Fraction = 0.05
    """Largest growth of the share of declined scans; the whole interval must lie below."""
    unanswered: Fraction = 0.05
    """Largest share of studies without an answer of the candidate."""
    margins: dict[Figure, Fraction] = Field(default_factory=dict)
    """Largest loss of true figures, on the scans whose labels are known; the whole interval must lie within."""


class ChangePlan(Section):
    """`plan.yaml` of a model: what a new version may change, and what it must keep to become the champion."""

    model: str
    """The registered model: the study's name."""
    may_change: list[str]
    """Settings of the study file that may differ from the champion's: sections or dotted keys, as in [data.manifest,
    training, evaluation.operating_point]."""
    margins: dict[Figure, Fraction]
    """Largest loss of each figure against the champion on the same test cases; the whole interval must lie within."""
    site_margins: dict[Figure, Fraction] = Field(default_factory=dict)
    """The same at each site."""
    patients: int = Field(100, ge=2)
    """Minimum number of test patients that both versions share."""
    shadow: ShadowDemand | None = None
    """What a shadow trial has to show; null: none is asked for."""
    triggers: dict[str, str] = Field(default_factory=dict)
    """What is done when a column of `medopt drift` has drifted: {content distance: "review 50 scans within a week"}."""


def read_plan(path: Path) -> tuple[ChangePlan, str]:
    """The plan, and the SHA-256 of its file. Raises ConfigError naming the file and the key."""
    try:
        content = path.read_bytes()
        return ChangePlan.model_validate(yaml.safe_load(content)), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise ConfigError(f"The change plan {path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"The change plan {path} is not YAML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"The change plan {path}: {where}: {first['msg']}.") from None


def outside(plan: ChangePlan, champion: Study, version: Study, compared: Comparison | None) -> list[str]:
    """What of a change lies outside the plan; nothing where it may be made. `compared` is against the champion."""
    found = [
        f"{key} changed, which the plan does not allow"
        for key in sorted(changed_settings(champion, version))
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in plan.may_change)
    ]
    if compared is None:
        return [*found, "it is not compared with the champion"]
    if compared.patients < plan.patients:
        found.append(f"{compared.patients} test patients are shared; the plan asks for {plan.patients}")
    (run,) = compared.runs
    found += _beyond(run.figures, plan.margins, "")
    for site, figures in run.sites.items():
        found += _beyond(figures, plan.site_margins, f" at {site}")
    return found


def outside_trial(plan: ChangePlan, report: ShadowReport | None) -> list[str]:
    """What a shadow trial does not show that the plan asks for; nothing where it asks for none."""
    demand = plan.shadow
    if demand is None:
        return []
    if report is None:
        return ["the plan asks for a shadow trial: give its report with --shadow FILE.json"]
    figures, studies = report.overall, report.studies
    asked = sum(count for state, count in studies.items() if state != "waiting")
    missing = studies.get("failed", 0) + studies.get("skipped", 0)
    found = []
    if figures.patients < demand.patients:
        found.append(f"the shadow trial has {figures.patients} patients; the plan asks for {demand.patients}")
    if figures.agreement.low is None or not figures.agreement.low >= demand.agreement:
        found.append(f"{format_share(figures.agreement)} of decisions agree; the plan asks for {demand.agreement:g}")
    more = figures.declined.difference
    if more.high is None or not more.high <= demand.declined:
        found.append(f"the declined share grows by {format_difference(more)}; the plan allows {demand.declined:g}")
    if asked and missing > demand.unanswered * asked:
        found.append(f"{missing} of {asked} studies have no answer; the plan allows {demand.unanswered:g}")
    if demand.margins and report.truth is None:
        found.append("no label of a scan of the shadow trial is known; the plan asks for margins of true figures")
    if demand.margins and report.truth is not None:
        found += _beyond(report.truth.runs[0].figures, demand.margins, " in the shadow trial")
    return found


def changed_settings(first: Study, second: Study) -> set[str]:
    """Dotted keys of the settings in which two studies differ."""
    pair = [dict(_leaves(one.model_dump(mode="json"), "")) for one in (first, second)]
    return {key for key in pair[0].keys() | pair[1].keys() if pair[0].get(key) != pair[1].get(key)}


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _beyond(figures: PairedFigures, margins: Mapping[Figure, float], where: str) -> Iterator[str]:
    """Figures whose interval does not rule out a loss beyond the margin."""
    for name, margin in margins.items():
        difference = figures.by_name()[name].difference
        if difference.low is None or not difference.low >= -margin:
            yield f"{name}{where} changes by {format_difference(difference)}; the plan allows a loss of {margin:g}"


def record_decision(runs: Path, decision: str, **details: object) -> str:
    """Append a decision to the record of a runs folder, a chain of SHA-256, and return the chain's last hash.

    Raises DataError where the record was changed since it was written; nothing is added then.
    """
    path = runs / RECORD
    if path.exists():
        verify(path)
    record = AuditFile(path, time.time)
    record(decision, **details)
    record.close()
    return verify(path)[1]

"""A shadow trial: how a candidate release differs from the present one on the same scans in service.

Shares (agreement, scans that are declined or called positive) have Wilson's interval over patients, and their
differences Newcombe's paired one (`medopt.evaluation.paired_shares`); means have Student's interval over patients.
Where labels are known, both are compared as `medopt compare` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.core.result import Result
from medopt.evaluation.comparison import Comparison
from medopt.evaluation.paired_shares import share_difference
from medopt.metrics.differences import mean_over_patients
from medopt.metrics.proportions import proportion

COSTS = ("cpu_seconds", "seconds", "memory_mb")


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """What a release answered on a scan; `declined` is the reason, "" where it gave a decision."""

    decision: str
    declined: str
    probabilities: Mapping[str, float]
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScanPair:
    """One scan that both releases read. All names are pseudonyms; `labels` are the findings whose truth is known."""

    study: str
    scan: str
    patient: str
    site: str
    device: str
    present: GivenAnswer
    candidate: GivenAnswer
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StudyCost:
    """What one study cost both releases, each (COSTS): processor time, time, most memory."""

    patient: str
    present: tuple[float, float, float]
    candidate: tuple[float, float, float]


class ReleaseName(Result):
    """Which release: the SHA-256 of its list of checksums, its study and when it was built."""

    digest: str
    study: str
    created: str


class PairedShare(Result):
    """A share of scans under both releases, and the difference (candidate less present)."""

    present: Estimate
    candidate: Estimate
    difference: Estimate


class FindingShift(Result):
    """Of one finding, on the scans that both decided: called positive, and the candidate's probability less the other.

    `largest` is the largest change of a probability.
    """

    positive: PairedShare
    probability: Estimate
    largest: float


class TrialFigures(Result):
    """The figures of a group of scans. `agreement`: of the scans that both decided, the share with one decision."""

    scans: int
    patients: int
    declined: PairedShare
    agreement: Estimate
    findings: dict[str, FindingShift]


class ChangedDecision(Result):
    """A scan on which the decisions differ; "declined" stands for none."""

    study: str
    scan: str
    patient: str
    site: str
    present: str
    candidate: str
    shift: float | None
    """The largest change of a reported probability; None where one of the two declined."""


class PairedCost(Result):
    """The mean a study under both releases, and the difference (candidate less present)."""

    present: float
    candidate: float
    difference: Estimate


class ShadowReport(Result):
    """What a shadow trial shows.

    `studies` counts them by what the candidate did, `reasons` says why it failed or was not asked (the most frequent).
    `unpaired` studies were answered by both, on other scans. `truth` compares both on the scans whose labels are known,
    None without any.
    """

    format: int = 1
    node: str
    present: ReleaseName
    candidate: ReleaseName
    since: str
    until: str
    confidence: float
    studies: dict[str, int]
    reasons: dict[str, int]
    unpaired: int
    overall: TrialFigures
    sites: dict[str, TrialFigures]
    devices: dict[str, TrialFigures]
    changed: tuple[ChangedDecision, ...]
    cost: dict[str, PairedCost]
    truth: Comparison | None = None
    doubts: tuple[str, ...] = ()


def trial_figures(pairs: Sequence[ScanPair], findings: Sequence[str], confidence: float) -> TrialFigures:
    """The figures of these scans; `findings` are the labels that both releases report."""
    patients = _numbered([pair.patient or pair.study for pair in pairs])
    both = np.array([not pair.present.declined and not pair.candidate.declined for pair in pairs], dtype=bool)
    decided = [pair for pair, is_decided in zip(pairs, both, strict=True) if is_decided]
    of_decided = patients[both]
    same = np.array([pair.present.decision == pair.candidate.decision for pair in decided], dtype=bool)
    return TrialFigures(
        scans=len(pairs),
        patients=len(np.unique(patients)),
        declined=_share(pairs, lambda answer: bool(answer.declined), patients, confidence),
        agreement=proportion(same, of_decided, confidence, len(decided)),
        findings={name: _shift(decided, name, of_decided, confidence) for name in findings},
    )


def by_group(
    pairs: Sequence[ScanPair], name: Callable[[ScanPair], str], findings: Sequence[str], confidence: float
) -> dict[str, TrialFigures]:
    """The figures of each group, where there are several; what belongs to none is called "not known"."""
    groups: dict[str, list[ScanPair]] = {}
    for pair in pairs:
        groups.setdefault(name(pair) or "not known", []).append(pair)
    if len(groups) < 2:
        return {}
    return {key: trial_figures(groups[key], findings, confidence) for key in sorted(groups)}


def changed_decisions(pairs: Sequence[ScanPair], findings: Sequence[str]) -> tuple[ChangedDecision, ...]:
    """The scans whose decision changed, the largest change of a probability first."""
    found = [
        ChangedDecision(
            study=pair.study,
            scan=pair.scan,
            patient=pair.patient,
            site=pair.site,
            present=decisions[0],
            candidate=decisions[1],
            shift=_largest(pair, findings),
        )
        for pair in pairs
        if (decisions := [_decision(pair.present), _decision(pair.candidate)])[0] != decisions[1]
    ]
    return tuple(sorted(found, key=lambda one: -(1.0 if one.shift is None else one.shift)))


def paired_costs(costs: Sequence[StudyCost], confidence: float) -> dict[str, PairedCost]:
    """Each of COSTS; nothing where no study was answered by both."""
    if not costs:
        return {}
    patients = _numbered([cost.patient for cost in costs])
    present, candidate = (np.array([getattr(cost, name) for cost in costs]) for name in ("present", "candidate"))
    return {
        name: PairedCost(
            present=float(present[:, column].mean()),
            candidate=float(candidate[:, column].mean()),
            difference=mean_over_patients(candidate[:, column] - present[:, column], patients, confidence),
        )
        for column, name in enumerate(COSTS)
    }


def _share(
    pairs: Sequence[ScanPair], holds: Callable[[GivenAnswer], bool], patients: NDArray[np.intp], confidence: float
) -> PairedShare:
    before, after = (
        np.array([holds(getattr(pair, name)) for pair in pairs], dtype=bool) for name in ("present", "candidate")
    )
    return PairedShare(
        present=proportion(before, patients, confidence, len(pairs)),
        candidate=proportion(after, patients, confidence, len(pairs)),
        difference=share_difference(before, after, patients, confidence),
    )


def _shift(pairs: Sequence[ScanPair], name: str, patients: NDArray[np.intp], confidence: float) -> FindingShift:
    moved = np.array([pair.candidate.probabilities[name] - pair.present.probabilities[name] for pair in pairs])
    return FindingShift(
        positive=_share(pairs, lambda answer: name in answer.decision.split(";"), patients, confidence),
        probability=mean_over_patients(moved, patients, confidence),
        largest=float(np.abs(moved).max()) if len(moved) else 0.0,
    )


def _decision(answer: GivenAnswer) -> str:
    return "declined" if answer.declined else answer.decision


def _largest(pair: ScanPair, findings: Sequence[str]) -> float | None:
    if pair.present.declined or pair.candidate.declined or not findings:
        return None
    return max(abs(pair.candidate.probabilities[name] - pair.present.probabilities[name]) for name in findings)


def _numbered(names: Sequence[str]) -> NDArray[np.intp]:
    return np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.intp)

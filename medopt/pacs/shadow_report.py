"""The report of a shadow trial, from the pairs of answers that the node's ledger keeps."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from medopt.core.errors import DataError
from medopt.core.files import file_digest
from medopt.core.privacy import pseudonym
from medopt.core.records import UNKNOWN, Kind, Predictions, is_exclusive
from medopt.evaluation.comparison import Comparison, compare_models
from medopt.evaluation.shadow_trial import (
    COSTS,
    GivenAnswer,
    ReleaseName,
    ScanPair,
    ShadowReport,
    StudyCost,
    by_group,
    changed_decisions,
    paired_costs,
    trial_figures,
)
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.pacs.answers import TRIAL_STATES
from medopt.pacs.labels import Key, known_labels, label_of
from medopt.pacs.ledger import Ledger
from medopt.pacs.settings import NodeSettings
from medopt.pacs.worker_protocol import ScanRecord, StudyRecord
from medopt.release.layout import SUMS, ReleaseInfo, check_sums, read_info

MIN_PATIENTS = 30
_BOOTSTRAP, _CHANGED, _REASONS = 1000, 200, 20


@dataclass(frozen=True, slots=True)
class _Release:
    """A release of the trial, and which of its models runs."""

    name: ReleaseName
    info: ReleaseInfo
    kind: Kind

    @classmethod
    def of(cls, folder: Path, kind: Kind) -> _Release:
        check_sums(folder)
        info = read_info(folder)
        return cls(ReleaseName(digest=file_digest(folder / SUMS), study=info.study, created=info.created), info, kind)


def shadow_report(ledger: Ledger, settings: NodeSettings, confidence: float = 0.95) -> ShadowReport:
    """Compare what the release and the candidate of the node file answered on the same studies.

    Of a study that was answered several times the last answer counts. Raises ReleaseError where one of the two cannot
    be read, DataError where the node file names no candidate or the ledger has no answer of both.
    """
    if settings.shadow is None:
        raise DataError("The node file has no section shadow: there is no candidate to report on.")
    present = _Release.of(settings.release, settings.model)
    candidate = _Release.of(settings.shadow.release, settings.shadow.model)
    rows = _trial_rows(ledger, present.name.digest, candidate.name.digest)
    records = {
        row["study_uid"]: (_record(row["present"]), _record(row["candidate"]))
        for row in rows
        if row["state"] == "compared"
    }
    pairs, unpaired = _pairs(records, known_labels(ledger))
    findings = present.info.reported_labels
    comparable = present.info.labels == candidate.info.labels and present.info.task == candidate.info.task
    findings = findings if comparable else []
    shown = pairs if comparable else []
    states = Counter(row["state"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if row["state"] in ("failed", "skipped"))
    overall = trial_figures(shown, findings, confidence)
    return ShadowReport(
        node=settings.aet,
        present=present.name,
        candidate=candidate.name,
        since=_moment(min(row["at"] for row in rows)),
        until=_moment(max(row["at"] for row in rows)),
        confidence=confidence,
        studies={state: states[state] for state in TRIAL_STATES},
        reasons=dict(reasons.most_common(_REASONS)),
        unpaired=unpaired,
        overall=overall,
        sites=by_group(shown, lambda pair: pair.site, findings, confidence),
        devices=by_group(shown, lambda pair: pair.device, findings, confidence),
        changed=changed_decisions(shown, findings)[:_CHANGED],
        cost=paired_costs([_cost(uid, *both) for uid, both in records.items()], confidence),
        truth=_truth(shown, present, candidate, confidence) if comparable else None,
        doubts=tuple(_doubts(present.info, candidate.info, states, overall.patients, unpaired)),
    )


def _trial_rows(ledger: Ledger, present: str, candidate: str) -> list[sqlite3.Row]:
    """The trials of a candidate (also those that nobody was there for), the oldest first; raises DataError for none."""
    rows = ledger.rows(
        "SELECT study_uid, answers.record AS present, trials.record AS candidate, state, reason, answers.at AS at "
        "FROM trials JOIN answers ON id = answer WHERE release = ? AND candidate IN (?, '') ORDER BY id",
        present,
        candidate,
    )
    if not rows:
        raise DataError(
            "The ledger has no study that the release of the node file answered while this candidate was in its "
            "section shadow. Run the node for a while."
        )
    return rows


def _pairs(
    records: Mapping[str, tuple[StudyRecord, StudyRecord]], labels: Mapping[Key, Mapping[str, int]]
) -> tuple[list[ScanPair], int]:
    """The scans that both read, and how many studies have a scan that only one of them read."""
    pairs, unpaired = [], 0
    for uid, (present, candidate) in records.items():
        after = {scan.scan: scan for scan in candidate.scans}
        unpaired += {scan.scan for scan in present.scans} != after.keys()
        for scan in present.scans:
            if scan.scan in after:
                known = label_of(labels, uid, scan.scan)
                names = (pseudonym(uid), scan.scan, present.patient, present.site, present.device)
                pairs.append(ScanPair(*names, _given(scan), _given(after[scan.scan]), known))
    return pairs, unpaired


def _record(text: str) -> StudyRecord:
    return StudyRecord.model_validate_json(text)


def _given(scan: ScanRecord) -> GivenAnswer:
    return GivenAnswer(scan.decision, scan.declined, scan.probabilities, scan.logits)


def _cost(uid: str, present: StudyRecord, candidate: StudyRecord) -> StudyCost:
    before, after = ([getattr(record, name) for name in COSTS] for record in (present, candidate))
    return StudyCost(present.patient or pseudonym(uid), tuple(before), tuple(after))


def _truth(pairs: Sequence[ScanPair], present: _Release, candidate: _Release, confidence: float) -> Comparison | None:
    """Both on the scans that both decided and whose labels are known."""
    known = [pair for pair in pairs if pair.labels and not (pair.present.declined or pair.candidate.declined)]
    if not known:
        return None
    models = {"present": present, "candidate": candidate}
    tables = {name: _calibrated(known, name, release) for name, release in models.items()}
    return compare_models(tables, {"bootstrap": _BOOTSTRAP, "confidence": confidence, "seed": 0})


def _calibrated(pairs: Sequence[ScanPair], name: str, release: _Release) -> CalibratedPredictions:
    info, model = release.info, release.info.models[release.kind]
    return CalibratedPredictions(
        Predictions(
            model=name,
            case_id=np.array([pair.scan for pair in pairs], dtype=np.str_),
            patient_id=np.array([pair.patient or pair.study for pair in pairs], dtype=np.str_),
            site=np.array([pair.site for pair in pairs], dtype=np.str_),
            split=np.full(len(pairs), "test"),
            labels=np.array([_label(pair.labels, info) for pair in pairs], dtype=np.int64),
            logits=np.array([getattr(pair, name).logits for pair in pairs], dtype=np.float64),
        ),
        info.task,
        model.calibration,
        model.operating_point,
    )


def _label(truth: Mapping[str, int], info: ReleaseInfo) -> int | list[int]:
    if info.task == "multilabel":
        return [truth.get(name, UNKNOWN) for name in info.labels]
    if is_exclusive(info.task):
        return next(place for place, name in enumerate(info.labels) if truth.get(name))
    return truth[info.reported_labels[0]]


def _doubts(
    present: ReleaseInfo, candidate: ReleaseInfo, states: Counter[str], patients: int, unpaired: int
) -> list[str]:
    """What the trial cannot show."""
    if (present.labels, present.task) != (candidate.labels, candidate.task):
        return [
            f"the releases answer other questions ({', '.join(present.labels)} and {', '.join(candidate.labels)}): "
            "their decisions cannot be compared"
        ]
    doubts = []
    missing = states["failed"] + states["skipped"]
    if missing > 0.05 * sum(states.values()):
        doubts.append(f"{missing} of {sum(states.values())} studies have no answer of the candidate: see the reasons")
    if unpaired:
        doubts.append(f"in {unpaired} studies the two releases did not read the same scans")
    if patients < MIN_PATIENTS:
        doubts.append(f"only {patients} patients were compared")
    return doubts


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

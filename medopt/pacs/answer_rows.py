"""The node's answers as rows of a table of predictions: for performance and drift in service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medopt.core.errors import DataError
from medopt.core.privacy import pseudonym
from medopt.pacs.labels import Key, known_labels, label_of
from medopt.pacs.ledger import RowSource
from medopt.pacs.worker_protocol import ScanRecord, StudyRecord
from medopt.serving.prediction_table import DETAILS, NUMBERS

_FACTS = DETAILS[DETAILS.index("modality") :]


def answer_rows(
    ledger: RowSource, release_digest: str, names: Sequence[str], *, has_number: bool = False
) -> tuple[list[dict[str, str]], dict[str, Mapping[str, int]]]:
    """What a release with the labels `names` answered, a row a scan, and the known truth, by the rows' `path`.

    Of a study that was answered several times the last answer counts. `path` is the scan's pseudonym, `patient` that of
    its patient. Raises DataError where the ledger has no answer of this release.
    """
    last = {
        row["study_uid"]: row["record"]
        for row in ledger.rows("SELECT study_uid, record FROM answers WHERE release = ? ORDER BY id", release_digest)
    }
    if not last:
        raise DataError(
            "The node's ledger has no answer of this release. Answers are kept since this version; name the release "
            "that the node runs."
        )
    return rows_of(last.items(), known_labels(ledger), names, has_number=has_number)


def rows_of(
    answers: Iterable[tuple[str, str]], labels: Mapping[Key, Mapping[str, int]], names: Sequence[str], *,
    has_number: bool = False,
) -> tuple[list[dict[str, str]], dict[str, Mapping[str, int]]]:  # fmt: skip
    """The same of some answers: pairs of a study's UID and its record."""
    rows, truth = list[dict[str, str]](), dict[str, Mapping[str, int]]()
    for uid, text in answers:
        record = StudyRecord.model_validate_json(text)
        for scan in record.scans:
            rows.append(_row(scan, record.patient or pseudonym(uid), names, has_number))
            if known := label_of(labels, uid, scan.scan):
                truth[scan.scan] = known
    return rows, truth


def _row(scan: ScanRecord, patient: str, names: Sequence[str], has_number: bool) -> dict[str, str]:
    row = {"path": scan.scan, "patient": patient, "decision": scan.decision, "declined": scan.declined, "refused": ""}
    row |= {"why": scan.declined, "content_distance": "", "texture_distance": ""}
    row |= {f"probability_{name}": "" if scan.declined else f"{scan.probabilities[name]:.6f}" for name in names}
    if scan.distances is not None:
        row |= {
            name: f"{value:.4g}"
            for name, value in zip(("content_distance", "texture_distance"), scan.distances, strict=True)
        }
    row |= dict(zip(_FACTS, scan.facts or ("",) * len(_FACTS), strict=True))
    if has_number:
        number = (None, None, None) if scan.number is None or scan.declined else scan.number
        row |= {name: "" if one is None else f"{one:.6g}" for name, one in zip(NUMBERS, number, strict=True)}
    return row

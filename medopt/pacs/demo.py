"""The demo: drawn studies are sent to Orthanc, which routes them to the node; the node's reports come back there."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import DigitalXRayImageStorageForPresentation  # type: ignore[attr-defined]

from medopt.core.errors import DataError
from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.example_site import DemoSite, http_body
from medopt.phantom import Radiograph, draw_case, write_radiograph

SITES = ("site_a", "site_b", "site_c")
_SEED = 4711  # not the seed of the demo study: other chests than those the model was trained on
_POLL_SECONDS = 0.2
_CERTAINTY, _PRESENCE, _COMMENT = "111012", "121052", "121106"  # codes of DCM (PS3.16 D)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """One study: what was drawn, and the report. `seconds`: from its last image in Orthanc to the report there."""

    study: int
    truth: str
    answer: str = "no result"
    probability: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(slots=True)
class _DrawnStudy:
    result: DemoResult
    uid: str
    file: Path
    sent_at: float = 0.0


def send_studies(site: DemoSite, count: int, progress: Callable[[str], None]) -> Iterator[list[DemoResult]]:
    """Draw studies, send them to Orthanc as a modality does, and yield all results whenever a report arrives."""
    studies = [_draw(site.folder / "scans", number) for number in range(1, count + 1)]
    progress(f"{count} studies drawn")
    _send(site, studies)
    progress("sent to Orthanc, which routes them to the node")
    pending = list(studies)
    deadline = time.monotonic() + 60 + 6 * count
    while pending and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        for study in list(pending):
            report = _report_in_orthanc(site, study.uid)
            if report is not None:
                seconds = round(time.monotonic() - study.sent_at, 1)
                study.result = replace(_with_findings(study.result, report), seconds=seconds)
                pending.remove(study)
                yield [study.result for study in studies]
    if pending:
        yield [study.result for study in studies]


def summary_line(results: Sequence[DemoResult]) -> str:
    """The table of results in a sentence: how many answers are right, how long they took.

    >>> summary_line([DemoResult(1, "nodule", "Present", 0.9, 1.0), DemoResult(2, "nodule", "Undetermined", None, 3.0)])
    '2 studies: 1 right, 0 wrong, 1 undetermined, 0 without a result; 2.0 s from the last image to the report (median)'
    """
    expected = {"nodule": "Present", "no_nodule": "Absent"}
    answered = [result for result in results if result.seconds is not None]
    undetermined = sum(result.answer == "Undetermined" for result in answered)
    right = sum(result.answer == expected[result.truth] for result in answered)
    counts = f"{right} right, {len(answered) - right - undetermined} wrong, {undetermined} undetermined"
    seconds = [result.seconds for result in answered if result.seconds is not None]
    duration = f"; {median(seconds):.1f} s from the last image to the report (median)" if seconds else ""
    return f"{len(results)} studies: {counts}, {len(results) - len(answered)} without a result{duration}"


def newest_release(runs: Path, study: str = "phantom") -> Path:
    """The release of a study's newest run; raises DataError if there is none."""
    releases = sorted((runs / study).glob("*/release/SHA256SUMS"))
    if not releases:
        raise DataError(f"There is no release in {runs / study}/*/release. Make one first: make demo (3 minutes).")
    return releases[-1].parent


def _draw(folder: Path, number: int) -> _DrawnStudy:
    nodule, site = number % 2 == 0, SITES[number % len(SITES)]
    pixels = draw_case(_SEED, site, nodule=nodule, patient=number, sex="MF"[number % 2])
    header = Radiograph(patient_id=f"DEMO-{number:02d}", patient_name=f"DEMO^{number:02d}", accession=f"D{number:03d}")
    path = write_radiograph(folder / f"{number:02d}.dcm", pixels, header)
    uid = str(parse_dicom(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    return _DrawnStudy(DemoResult(number, "nodule" if nodule else "no_nodule"), uid, path)


def _send(site: DemoSite, studies: Sequence[_DrawnStudy]) -> None:
    ae = AE("MODALITY")
    ae.add_requested_context(DigitalXRayImageStorageForPresentation)
    association = ae.associate("127.0.0.1", site.orthanc_dicom_port, ae_title="ORTHANC")
    try:
        for study in studies:
            established = association.is_established
            status = association.send_c_store(parse_dicom(study.file)).get("Status") if established else None
            if status != 0x0000:
                raise DataError("Orthanc did not accept a drawn study; see its log.")
            study.sent_at = time.monotonic()
    finally:
        if association.is_established:
            association.release()


def _report_in_orthanc(site: DemoSite, study_uid: str) -> Dataset | None:
    """The measurement report of a study, if Orthanc has it."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid, "Modality": "SR"}}
    matches = http_body(f"{site.orthanc_url}/tools/find", json.dumps(query).encode())
    for instance in json.loads(matches or "[]"):
        content = http_body(f"{site.orthanc_url}/instances/{instance}/file")
        if content is not None:
            report = parse_dicom(io.BytesIO(content))
            if "3D" in report.SOPClassUID.name:
                return report
    return None


def _with_findings(result: DemoResult, report: Dataset) -> DemoResult:
    for item in _content_items(report):
        code = item.ConceptNameCodeSequence[0].CodeValue if item.get("ConceptNameCodeSequence") else ""
        if code == _PRESENCE:
            result = replace(result, answer=item.ConceptCodeSequence[0].CodeMeaning)
        elif code == _CERTAINTY:
            result = replace(result, probability=round(float(item.MeasuredValueSequence[0].NumericValue) / 100, 4))
        elif code == _COMMENT:
            result = replace(result, note=item.TextValue)
    return result


def _content_items(parent: Dataset) -> Iterator[Dataset]:
    for item in parent.get("ContentSequence", []):
        yield item
        yield from _content_items(item)

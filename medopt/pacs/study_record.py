"""What the ledger keeps of an answer: by pseudonyms whose study it is, what was answered, and what that cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom import Dataset

from medopt.core.privacy import pseudonym
from medopt.pacs.result_objects import ScanAnswer
from medopt.pacs.study_header import element_texts
from medopt.pacs.worker_protocol import ScanRecord, StudyRecord

_DEVICE = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber")


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """When an answer was begun: by the clock, and in processor time of this process."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def start(cls) -> Stopwatch:
        """Now."""
        return cls(time.perf_counter(), time.process_time())


def study_record(
    images: Sequence[Dataset], answers: Sequence[ScanAnswer], watch: Stopwatch, *, by_series: bool
) -> StudyRecord:
    """The record of the answers on a study with these images; `by_series`: a scan is a series, else an image."""
    device = [_common(images, keyword) for keyword in _DEVICE]
    return StudyRecord(
        patient=hidden(_common(images, "PatientID")),
        accession=hidden(_common(images, "AccessionNumber")),
        site=hidden(_common(images, "InstitutionName")),
        device=hidden("/".join(device) if any(device) else ""),
        scans=tuple(_scan_record(answer, "SeriesInstanceUID" if by_series else "SOPInstanceUID") for answer in answers),
        seconds=time.perf_counter() - watch.seconds,
        cpu_seconds=time.process_time() - watch.cpu_seconds,
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    )


def hidden(identifier: str) -> str:
    """The pseudonym of an identifier; "" where there is none."""
    return pseudonym(_sound(identifier)) if identifier else ""


def _sound(text: str) -> str:
    """The text without what UTF-8 cannot hold: a header may say anything, and no record may fail for it."""
    return text.encode("utf-8", "replace").decode()


def _scan_record(scan: ScanAnswer, keyword: str) -> ScanRecord:
    answer, number = scan.answer, scan.answer.number
    keyword = keyword if answer.logits else "StudyInstanceUID"  # no series of the study could be chosen
    names = {text for image in scan.images for text in element_texts(image, keyword)}
    return ScanRecord(
        scan=hidden(" ".join(sorted(names))),
        decision=answer.decision,
        probabilities=answer.probabilities,
        logits=answer.logits,
        declined=answer.declined or "",
        number=None if number is None else (number.value, number.low, number.high),
        distances=answer.distances,
        facts=tuple(map(_sound, scan.facts)),
    )


def _common(images: Sequence[Dataset], keyword: str) -> str:
    """The one value of all images that have any; "" where they differ."""
    values = {" ".join(texts) for image in images if (texts := element_texts(image, keyword))}
    return values.pop() if len(values) == 1 else ""

"""What the node and its worker process say to each other, one JSON message after the other.

The node does not import the libraries that the model needs; bytes are sent as base64.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medopt.config import SeriesRules
from medopt.pacs.ledger import Ending
from medopt.pacs.settings import ResultSettings


class Message(BaseModel):
    """A frozen message whose bytes become base64 in JSON; NaN stays NaN."""

    model_config = ConfigDict(
        frozen=True, ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
    )

    def to_json(self) -> bytes:
        """The message as it is sent."""
        return self.model_dump_json().encode()


class EarlierResult(Message):
    """The result that a new one replaces; the new one names it as its predecessor."""

    sop_uid: str
    series_uid: str


class OutgoingObject(Message):
    """One DICOM object to send back: the bytes of its file (PS3.10)."""

    result_type: str
    """"report", "text", "heat map", "evidence map" or "key images"."""
    sop_class: str
    sop_uid: str
    content: bytes


class OpenRelease(Message):
    """The first message to the worker."""

    release: Path
    model: Literal["int8", "float"]
    series: SeriesRules | None
    results: ResultSettings
    candidate: Literal["", "idle", "low"] = ""
    """Of a candidate, which makes no objects: its priority."""


class ReleaseOpened(Message):
    """The worker's response: the SHA-256 of its model and of its release, or why it refuses the release."""

    model_digest: str = ""
    release_digest: str = ""
    refusal: str | None = None


class StudyRequest(Message):
    """A study to answer: a folder with its images."""

    folder: Path
    digests: Mapping[str, str]
    """The ledger's digest of each file, by file name."""
    previous: Mapping[str, EarlierResult]
    """The latest result of each type that the study has."""
    now: datetime


class ScanRecord(Message):
    """What a release answered on one scan, as the ledger keeps it; no identifier is in it."""

    scan: str
    """Pseudonym of the image, of the series of a volume, or of those of a case."""
    decision: str
    probabilities: Mapping[str, float]
    logits: tuple[float, ...]
    declined: str = ""
    number: tuple[float, float | None, float | None] | None = None
    """Of a regression study: the number and the ends of its interval."""
    distances: tuple[float, float] | None = None
    facts: tuple[str, ...] = ()
    """How it was acquired: the columns of a table of predictions, from `modality` on."""


class StudyRecord(Message):
    """What a release answered on one study, and what that cost. Patient, site and others are pseudonyms, or ""."""

    patient: str
    accession: str
    site: str
    """Of the institution that the images name."""
    device: str
    """Of the maker, model and serial number of the device."""
    scans: tuple[ScanRecord, ...]
    seconds: float
    cpu_seconds: float
    """Processor time of all threads."""
    memory_mb: float
    """The most that the process took so far (resident)."""


class StudyResponse(Message):
    """How a study ended, and the objects to send. `decisions` are those of its scans, without an identifier.

    `record` is None where the study could not be read.
    """

    ending: Ending
    reason: str = ""
    objects: tuple[OutgoingObject, ...] = ()
    decisions: tuple[str, ...] = ()
    record: StudyRecord | None = None

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
    """A frozen message whose bytes become base64 in JSON."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

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
    """"report", "text" or "heat map"."""
    sop_class: str
    sop_uid: str
    content: bytes


class OpenRelease(Message):
    """The first message to the worker."""

    release: Path
    model: Literal["int8", "float"]
    series: SeriesRules | None
    results: ResultSettings


class ReleaseOpened(Message):
    """The worker's response: the SHA-256 of its model, or why it refuses the release."""

    model_digest: str = ""
    refusal: str | None = None


class StudyRequest(Message):
    """A study to answer: a folder with its images."""

    folder: Path
    digests: Mapping[str, str]
    """The ledger's digest of each file, by file name."""
    previous: Mapping[str, EarlierResult]
    """The latest result of each type that the study has."""
    now: datetime


class StudyResponse(Message):
    """How a study ended, and the objects to send. `decisions` are those of its scans, without an identifier."""

    ending: Ending
    reason: str = ""
    objects: tuple[OutgoingObject, ...] = ()
    decisions: tuple[str, ...] = ()

"""A finished object on its way from the worker process to the spool; the node itself loads no model's libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutgoingObject:
    """One object: its bytes as a DICOM file."""

    kind: str
    sop_class: str
    sop_uid: str
    content: bytes

"""What all result objects share: the model they come from, derived UIDs, one clock, encoding as a file."""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from typing import TypedDict

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DA, DT, TM

from medopt import __version__
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_header import OPTIONAL, copy_missing, study_header
from medopt.pacs.worker_protocol import OutgoingObject
from medopt.release.layout import ModelInfo, ReleaseInfo
from medopt.release.predictor import Answer

_NAMESPACE = uuid.UUID("8e6b3a52-4b0c-5f0e-9d6e-5a2f6a0f4c11")


@dataclass(frozen=True, slots=True)
class ScanAnswer:
    """The answer for one scan, and the headers of its images (one image, or those of a series).

    `facts` are its modality and subgroups, as a table of predictions has them.
    """

    answer: Answer
    images: tuple[Dataset, ...]
    facts: tuple[str, ...] = ()

    def presence(self, label: str) -> str:
        """Present, Absent, or, for a scan that is declined or undecided, Undetermined."""
        if self.answer.declined or self.answer.is_undecided(label):
            return "Undetermined"
        return "Present" if label in self.answer.decision.split(";") else "Absent"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What the answers come from: a release and one of its models, with the SHA-256 of both."""

    release: ReleaseInfo
    model: ModelInfo
    model_digest: str
    release_digest: str


class CommonAttributes(TypedDict):
    """highdicom's parameters for equipment (PS3.3 C.7.5.1), time and encoding."""

    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str
    transfer_syntax_uid: str
    content_date: date
    content_time: time


@dataclass(frozen=True, slots=True)
class ResultContext:
    """What the objects of one study have in common. `input_digests` are the digests of the images that were read.

    `all_images` are the headers of the study's images; without them, patient and study are those of the images that an
    object is about.
    """

    identity: ModelIdentity
    study_uid: str
    input_digests: Sequence[str]
    settings: ResultSettings
    now: datetime
    all_images: Sequence[Dataset] = ()

    def header(self, images: Sequence[Dataset]) -> Dataset:
        """Patient and study of an object about these images; raises PatientConflict."""
        return study_header(self.all_images or images)

    def uid(self, *parts: str) -> str:
        """A UID that follows from the study, its images, the model and these parts."""
        return derived_uid(self.study_uid, *sorted(self.input_digests), self.identity.model_digest, *parts)

    def moment(self, header: Dataset) -> datetime:
        """Now, by the clock of the images: at their offset from UTC, else local (PS3.3 C.12.1.1.8)."""
        offset = str(header.get("TimezoneOffsetFromUTC") or "")
        if not offset:
            return self.now.astimezone()
        minutes = int(offset[1:3]) * 60 + int(offset[3:5])
        return self.now.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))

    def common_attributes(self, header: Dataset) -> CommonAttributes:
        """The attributes that every object has."""
        moment = self.moment(header)
        return {
            "manufacturer": "medopt",
            "manufacturer_model_name": "medopt",
            "software_versions": __version__,
            "device_serial_number": self.identity.release_digest[:16],
            "transfer_syntax_uid": ExplicitVRLittleEndian,
            "content_date": moment.date(),
            "content_time": moment.time(),
        }

    def complete(self, dataset: Dataset, header: Dataset) -> None:
        """Set what highdicom leaves out, and the times of creation, which it takes from another clock."""
        copy_missing(dataset, header, OPTIONAL)
        moment = self.moment(header)
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = DA(moment.date()), TM(moment.time())
        for equipment in dataset.get("ContributingEquipmentSequence", []):
            equipment.ContributionDateTime = DT(moment)


def derived_uid(*parts: str) -> str:
    """A UID (PS3.5 B.2, from a UUID) that the same parts always give.

    >>> derived_uid("1.2.3", "report") == derived_uid("1.2.3", "report")
    True
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(parts)).int}"


def encode_object(result_type: str, dataset: Dataset) -> OutgoingObject:
    """The object as a DICOM file (PS3.10), explicit VR little endian."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return OutgoingObject(
        result_type=result_type,
        sop_class=str(dataset.SOPClassUID),
        sop_uid=str(dataset.SOPInstanceUID),
        content=stream.getvalue(),
    )


def object_header(outgoing: OutgoingObject) -> Dataset:
    """The header of an encoded object, for others that refer to it."""
    return dcmread(io.BytesIO(outgoing.content), stop_before_pixels=True)

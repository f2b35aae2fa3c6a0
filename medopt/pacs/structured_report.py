"""What is sent back: a Comprehensive 3D SR after TID 1500, and a Basic Text SR for viewers that read no more.

Both are unverified and preliminary, of the same patient, study and accession number as the images (PS3.3 A.35). Their
UIDs follow from the study, the images, the model and the kind, so that the same work never gives a second object.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from highdicom import sr
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, BasicTextSRStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from medopt import __version__
from medopt.pacs.dicom_object import OutgoingObject
from medopt.pacs.settings import Results
from medopt.release.layout import ModelInfo, ReleaseInfo
from medopt.release.predictor import UNDECIDED, Answer

REPORT, TEXT = "report", "text"
_NAMESPACE = uuid.UUID("8e6b3a52-4b0c-5f0e-9d6e-5a2f6a0f4c11")
_OF_THE_STUDY = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "ReferringPhysicianName"),
)
_OF_THE_IMAGE = ("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "Modality", "Rows", "Columns")
_UNICODE = "ISO_IR 192"
Namer = Callable[..., str]
Earlier = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class ScanAnswer:
    """The answer of one scan, and the headers of its images (one image, or those of a series)."""

    answer: Answer
    images: tuple[Dataset, ...]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What the answers come from: the release, which of its models by SHA-256, and the SHA-256 of all its files."""

    info: ReleaseInfo
    model: ModelInfo
    model_digest: str
    release_digest: str


def make_results(
    origin: ModelIdentity, judged: Sequence[ScanAnswer], inputs: Sequence[str], previous: Earlier, wanted: Results,
    now: datetime,
) -> list[OutgoingObject]:  # fmt: skip
    """The objects of one study.

    `inputs` are the digests of the images; `previous` gives the latest earlier object of each kind, as (SOP instance
    UID, series UID), which the new one then names as its predecessor.
    """
    uid = namer(origin, judged[0], inputs)
    images = [plain(image) for one in judged for image in one.images]
    report = _report(origin, judged, images, uid, previous, wanted, now)
    made = [made_of(REPORT, report)]
    if wanted.text:
        made.append(made_of(TEXT, _text(origin, judged, report, uid, previous, wanted)))
    return made


def namer(origin: ModelIdentity, one: ScanAnswer, inputs: Sequence[str]) -> Namer:
    """Names the objects of a study, by what they are."""
    study = str(one.images[0].StudyInstanceUID)

    def uid(*what: str) -> str:
        return derived_uid(study, *sorted(inputs), origin.model_digest, *what)

    return uid


def derived_uid(*parts: str) -> str:
    """A UID (PS3.5 B.2, from a UUID) that the same parts always give."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(parts)).int}"


def _report(
    origin: ModelIdentity,
    judged: Sequence[ScanAnswer],
    images: Sequence[Dataset],
    uid: Namer,
    previous: Earlier,
    wanted: Results,
    now: datetime,
) -> Dataset:
    info = origin.info
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", origin.release_digest), name=info.study[:64], manufacturer_name="medopt"
        ),
    )
    groups = [_group(origin, one, label, uid) for one in judged for label in findings(info)]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = sr.Comprehensive3DSR(
        evidence=images,
        content=content[0],
        series_instance_uid=uid(REPORT, "series"),
        series_number=wanted.series_number,
        sop_instance_uid=uid(REPORT),
        instance_number=1,
        series_description=f"{info.study} (research, unverified)"[:64],
        is_complete=True,
        specific_character_set=_UNICODE,
        **made_by(origin, now),
        series_date=now.date(),
        series_time=now.time(),
    )
    for keyword in ("StudyDescription", "IssuerOfPatientID"):
        if images[0].get(keyword):
            setattr(report, keyword, images[0].get(keyword))
    _name_earlier(report, previous.get(REPORT))
    return report


def made_by(origin: ModelIdentity, now: datetime) -> dict[str, Any]:
    """What highdicom is told of whatever is made: equipment (PS3.3 C.7.5.1), time and encoding."""
    return {
        "manufacturer": "medopt",
        "manufacturer_model_name": "medopt",
        "software_versions": __version__,
        "device_serial_number": origin.release_digest[:16],
        "transfer_syntax_uid": ExplicitVRLittleEndian,
        "content_date": now.date(),
        "content_time": now.time(),
    }


def findings(info: ReleaseInfo) -> Sequence[str]:
    """The labels that are told: of a binary study the finding alone."""
    return info.labels[1:] if info.task == "binary" else info.labels


def presence(answer: Answer, label: str) -> str:
    """Present, Absent or Undetermined, the last for what is declined or undecided."""
    if answer.declined or answer.decision == UNDECIDED:
        return "Undetermined"
    return "Present" if label in answer.decision.split(";") else "Absent"


def _group(origin: ModelIdentity, one: ScanAnswer, label: str, uid: Namer) -> sr.MeasurementsAndQualitativeEvaluations:
    first = str(one.images[0].SOPInstanceUID)
    certainty = []
    if not one.answer.declined:
        percent = round(100 * one.answer.probabilities[label], 2)
        certainty = [sr.Measurement(name=codes.DCM.CertaintyOfFinding, value=percent, unit=codes.UCUM.Percent)]
    found = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid("tracking", first, label), identifier=label),
        algorithm_id=_algorithm(origin),
        measurements=certainty,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, getattr(codes.SCT, presence(one.answer, label)))
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(str(image.SOPClassUID), str(image.SOPInstanceUID)) for image in one.images
        ],
    )
    if one.answer.declined:
        found[0].ContentSequence.append(_sentence(codes.DCM.Comment, f"Declined: {one.answer.declined}"))
    return found


def _sentence(name: Code, text: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=name, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _algorithm(origin: ModelIdentity) -> sr.AlgorithmIdentification:
    """TID 4019; what a number depends on stands in its parameters."""
    parameters = [
        f"model sha256 {origin.model_digest}",
        f"release sha256 {origin.release_digest}",
        f"chain sha256 {origin.info.chain_fingerprint}",
        f"operating point {origin.model.threshold} ({origin.model.rule})",
    ]
    return sr.AlgorithmIdentification(
        name=origin.info.study,
        version=origin.info.created,
        parameters=parameters,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer="medopt",
    )


def _text(
    origin: ModelIdentity, judged: Sequence[ScanAnswer], report: Dataset, uid: Namer, previous: Earlier, wanted: Results
) -> Dataset:
    """PS3.3 A.35.1; everything but the content is the report's."""
    text = Dataset()
    text.update({tag: report[tag] for tag in report.keys()})  # noqa: SIM118  # iterating converts every element
    for keyword in ("ContentTemplateSequence", "PredecessorDocumentsSequence"):
        if keyword in text:
            delattr(text, keyword)
    text.SOPClassUID, text.SOPInstanceUID = BasicTextSRStorage, uid(TEXT)
    text.SeriesInstanceUID, text.SeriesNumber = uid(TEXT, "series"), wanted.series_number + 1
    text.ContentSequence = [_sentence(codes.DCM.Finding, sentence) for sentence in _sentences(origin, judged)]
    _name_earlier(text, previous.get(TEXT))
    return text


def _sentences(origin: ModelIdentity, judged: Sequence[ScanAnswer]) -> list[str]:
    info, told = origin.info, [f"{origin.info.question} Research software, unverified, preliminary."]
    for number, one in enumerate(judged, start=1):
        which = f"Image {number} of {len(judged)}: " if len(judged) > 1 else ""
        if one.answer.declined:
            told.append(f"{which}Undetermined. Declined: {one.answer.declined.rstrip('.')}.")
            continue
        for label in findings(info):
            percent = 100 * one.answer.probabilities[label]
            told.append(f"{which}{label}: {presence(one.answer, label)}, probability {percent:.1f} %.")
    told.append(
        f"{info.study} of {info.created}, operating point {_rounded(origin.model.threshold)} ({origin.model.rule}), "
        f"model sha256 {origin.model_digest}."
    )
    return told


def _rounded(threshold: float | tuple[float, ...] | None) -> str:
    if threshold is None:
        return "none"
    each = threshold if isinstance(threshold, tuple) else (threshold,)
    return ", ".join(f"{one:.4g}" for one in each)


def _name_earlier(document: Dataset, earlier: Sequence[str] | None) -> None:
    """The document that this one follows, as (SOP instance, series) (PS3.3 C.17.2); both are of one study."""
    if not earlier:
        return
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = document.SOPClassUID, earlier[0]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = earlier[1], [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = document.StudyInstanceUID, [series]
    document.PredecessorDocumentsSequence = [study]


def plain(image: Dataset) -> Dataset:
    """An image's header as far as a report takes it over: what is malformed there is empty here."""
    found = Dataset()
    for keyword in (*_OF_THE_STUDY, *_OF_THE_IMAGE):
        setattr(found, keyword, _readable(image, keyword))
    found.SpecificCharacterSet = _UNICODE
    if found.PatientSex not in ("M", "F", "O"):
        found.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(found.get(keyword))
        except ValueError:
            setattr(found, keyword, "")
    return found


def _readable(image: Dataset, keyword: str) -> object:
    try:
        value = image.get(keyword)
        return value if isinstance(value, int) else str(value or "")
    except Exception:  # an element is parsed when it is asked for, and each kind of damage has its own exception
        return ""


def made_of(kind: str, document: Dataset) -> OutgoingObject:
    """The object as a DICOM file (PS3.10), explicit VR little endian."""
    document.file_meta = FileMetaDataset()
    document.file_meta.MediaStorageSOPClassUID = UID(document.SOPClassUID)
    document.file_meta.MediaStorageSOPInstanceUID = UID(document.SOPInstanceUID)
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    document.save_as(stream, enforce_file_format=True)
    return OutgoingObject(kind, str(document.SOPClassUID), str(document.SOPInstanceUID), stream.getvalue())

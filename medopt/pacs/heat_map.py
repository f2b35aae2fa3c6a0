"""Where the evidence is, as a Secondary Capture (PS3.3 A.8): the scan in grey with the evidence in colour over it.

What a region adds to a logit is no outline of a finding and no probability. A picture says so in its own pixels;
`evidence_data` has the same as numbers, for sites that ask for them.
"""

from __future__ import annotations

import re

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.valuerep import DA, TM

from medopt.core.records import Volume, is_exclusive
from medopt.pacs.result_objects import ModelIdentity, ResultContext, ScanAnswer, encode_object
from medopt.pacs.study_header import element_texts, image_header
from medopt.pacs.worker_protocol import OutgoingObject
from medopt.release.evidence_picture import evidence_picture

HEAT_MAP = "heat map"


def heat_maps(
    context: ResultContext, scan: ScanAnswer, volume: Volume, evidence: NDArray[np.float64]
) -> list[OutgoingObject]:
    """A picture for each finding that is present or undecided; none for absent findings or declined scans.

    `evidence` (K, *grid) is what each region of the prepared scan added to each logit.
    """
    identity, objects = context.identity, []
    for label, own in findings_with_evidence(identity, scan, evidence):
        probability, beside = scan.answer.probabilities[label], bool(identity.release.covariates)
        picture = evidence_picture(identity.release.prepare, label, probability, volume, own, covariates=beside)
        objects.append(encode_object(HEAT_MAP, _secondary_capture(context, scan, label, picture)))
    return objects


def findings_with_evidence(
    identity: ModelIdentity, scan: ScanAnswer, evidence: NDArray[np.float64]
) -> list[tuple[str, NDArray[np.float64]]]:
    """The findings of a scan that get a picture, each with its own evidence (*grid)."""
    if is_exclusive(identity.release.task):  # a softmax ignores what all outputs share
        evidence = evidence - evidence.mean(axis=0)
    outputs = list(identity.release.reported_labels)
    return [(label, evidence[outputs.index(label)]) for label in mapped_labels(identity, scan)]


def mapped_labels(identity: ModelIdentity, scan: ScanAnswer) -> list[str]:
    """The findings of a scan that get a picture."""
    if scan.answer.declined:
        return []
    return [label for label in identity.release.reported_labels if scan.presence(label) != "Absent"]


def _secondary_capture(context: ResultContext, scan: ScanAnswer, label: str, picture: NDArray[np.uint8]) -> Dataset:
    header, first = context.header(scan.images), str(scan.images[0].SOPInstanceUID)
    capture = SCImage.from_ref_dataset(
        image_header(scan.images[0], header),
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=context.uid(HEAT_MAP, "series"),
        series_number=context.settings.series_number + 2,
        sop_instance_uid=context.uid(HEAT_MAP, first, label),
        instance_number=1,
        series_description=f"{context.identity.release.study} evidence (research)"[:64],
        **context.common_attributes(header),
    )
    context.complete(capture, header)
    moment = context.moment(header)
    capture.Laterality = laterality(scan)
    capture.PatientOrientation = patient_orientation(scan)
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = DA(moment.date()), TM(moment.time())
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # the caption names no patient
    capture.DerivationDescription = f"Evidence for {label}, model sha256 {context.identity.model_digest}"
    capture.SourceImageSequence = [_reference(image) for image in scan.images]
    return capture


def laterality(scan: ScanAnswer) -> str:
    """L or R as the first image has it, else empty."""
    sides = element_texts(scan.images[0], "Laterality")
    return sides[0] if sides in (["L"], ["R"]) else ""


def patient_orientation(scan: ScanAnswer) -> list[str]:
    """That of a single image, whose rows and columns its picture and its map keep; empty if it is not known."""
    axes = element_texts(scan.images[0], "PatientOrientation") if len(scan.images) == 1 else []
    return axes if len(axes) == 2 and all(re.fullmatch("[APRLHF]{1,3}", axis) for axis in axes) else []


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return reference

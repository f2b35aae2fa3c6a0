"""Where the evidence is, as numbers that viewers lay over the images, beside the picture of `heat_map`.

A Parametric Map (PS3.3 A.75) where the images lie in a frame of reference, as CT and MR do: 32-bit floats in the unit
of a logit (UCUM 1), what each place added to the finding's logit; below 0 what spoke against it. Their mean over the
places that the network saw is the logit without its bias. Other single images (CR, DX, MG) get a fractional
Segmentation (PS3.3 A.51): evidence for the finding as a share of its highest value, which the segment's description
gives. Both say in their text that they are no outline and no probability, and both have the quantity Class activation
(130402, DCM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom import (
    AlgorithmIdentificationSequence,
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medopt.core.records import FloatArray, Volume
from medopt.pacs.heat_map import findings_with_evidence, laterality, patient_orientation
from medopt.pacs.measurement_group import tracking_identifier
from medopt.pacs.result_objects import ResultContext, ScanAnswer, encode_object
from medopt.pacs.scan_planes import Plane, on_plane, scan_planes
from medopt.pacs.study_header import UNICODE, image_header
from medopt.pacs.worker_protocol import OutgoingObject
from medopt.release.evidence_picture import evidence_on_scan

EVIDENCE_MAP = "evidence map"
CONTENT_LABEL = "EVIDENCE_LOGIT"
SHARE_LABEL = "EVIDENCE_SHARE"
_MAX_VALUES = 2**24  # 64 MB; of larger series every second or third pixel of a row and of a column


def evidence_maps(
    context: ResultContext, scan: ScanAnswer, volume: Volume, evidence: NDArray[np.float64]
) -> list[OutgoingObject]:
    """A map for each finding that is present or undecided, in their order; [] where no image can carry one.

    `evidence` (K, *grid) is what each region of the prepared scan added to each logit. No map is made of multi-frame
    images, of series whose images do not say where they lie, and of CT and MR without a frame of reference.
    """
    series = [image for image in scan.images if image.SeriesInstanceUID == scan.images[0].SeriesInstanceUID]
    planes, objects = scan_planes(series), []
    try:
        for label, own in findings_with_evidence(context.identity, scan, evidence):
            values = evidence_on_scan(context.identity.release.prepare, volume, own)
            if planes:
                objects.append(_parametric_map(context, scan, label, planes, volume, values))
            elif _is_one_image(series, values):
                objects.append(_segmentation(context, scan, label, values))
    except (AttributeError, TypeError, ValueError):  # highdicom asks more of some kinds of images than they say
        return []  # a map must not cost the study its report
    return [encode_object(EVIDENCE_MAP, dataset) for dataset in objects]


def _is_one_image(series: Sequence[Dataset], values: FloatArray) -> bool:
    """Whether the scan is one image, and the map has its rows and columns."""
    header = image_header(series[0], Dataset())
    return len(series) == 1 and values.shape == (header.Rows, header.Columns)


def _parametric_map(
    context: ResultContext, scan: ScanAnswer, label: str, planes: Sequence[Plane], volume: Volume, values: FloatArray
) -> Dataset:
    """A frame for each image of the series, on its own pixels."""
    header = context.header(scan.images)
    step = math.ceil(math.sqrt(sum(plane.rows * plane.columns for plane in planes) / _MAX_VALUES))
    frames = np.stack([on_plane(values, volume.affine, plane, step) for plane in planes])
    highest = max(float(np.abs(frames).max()), 1e-6)
    first = planes[0]
    measures = PixelMeasuresSequence([step * each for each in first.spacing], first.thickness or 1.0)
    if not first.thickness:
        del measures[0].SliceThickness
    dataset = ParametricMap(
        source_images=[_source(plane, header) for plane in planes],
        pixel_array=frames,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="logit",
                lut_explanation="added to the logit by one place",
                unit=codes.UCUM.NoUnits,
                value_range=(float(frames.min()), float(frames.max())),
                slope=1.0,
                intercept=0.0,
                quantity_definition=codes.DCM.ClassActivation,
            )
        ],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.0, window_width=2 * highest)],
        content_label=CONTENT_LABEL,
        pixel_measures=measures,
        plane_orientation=PlaneOrientationSequence("PATIENT", list(first.orientation)),
        plane_positions=[PlanePositionSequence("PATIENT", list(plane.origin(step))) for plane in planes],
        **_shared(context, scan, label, "map", context.settings.series_number + 3),
    )
    dataset.Laterality = laterality(scan)
    return _completed(context, dataset, scan, label)


def _segmentation(context: ResultContext, scan: ScanAnswer, label: str, values: FloatArray) -> Dataset:
    """One segment: the evidence for a finding, 0 to 255, where 255 is its highest value."""
    header, release = context.header(scan.images), context.identity.release
    positive = np.maximum(values, 0)
    highest, tracking = float(positive.max()), tracking_identifier(context, scan, label)
    segment = SegmentDescription(
        segment_number=1,
        segment_label=f"Evidence for {label}"[:64],
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=codes.DCM.ClassActivation,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=release.study[:64], family=codes.DCM.ArtificialIntelligence, version=release.created[:64]
        ),
        tracking_id=tracking[0].value[:64],
        tracking_uid=tracking[1].value,
    )
    segment.SegmentDescription = (
        f"Share of the highest value, {highest:.4g} added to the logit by one place. "
        "No outline of a finding, no probability. Research software, unverified."
    )
    dataset = Segmentation(
        source_images=[image_header(scan.images[0], header)],
        pixel_array=(positive / highest if highest > 0 else positive)[None],
        segmentation_type="FRACTIONAL",
        segment_descriptions=[segment],
        content_label=SHARE_LABEL,
        omit_empty_frames=False,
        **_shared(context, scan, label, "share", context.settings.series_number + 4),
    )
    dataset.PatientOrientation = patient_orientation(scan)
    _add_spacing(dataset, scan.images[0])
    return _completed(context, dataset, scan, label)


def _add_spacing(dataset: Dataset, image: Dataset) -> None:
    """Add Pixel Measures. highdicom omits them without a frame of reference, and OHIF 3.13 fails then.

    They may be there (PS3.3 table A.51-2). The spacing is the image's, of a projection that on its detector. Its
    thickness, which a projection does not have, is 1 mm: highdicom reads no Pixel Measures without one.
    """
    if spacing := image.get("PixelSpacing") or image.get("ImagerPixelSpacing"):
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = PixelMeasuresSequence(list(spacing), 1.0)


def _shared(context: ResultContext, scan: ScanAnswer, label: str, form: str, number: int) -> dict[str, Any]:
    """What both forms have; all maps of one series of images are one series, which has one frame of reference."""
    first, header = scan.images[0], context.header(scan.images)
    return {
        "series_instance_uid": context.uid(EVIDENCE_MAP, form, str(first.SeriesInstanceUID), "series"),
        "series_number": number,
        "sop_instance_uid": context.uid(EVIDENCE_MAP, str(first.SOPInstanceUID), label),
        "instance_number": 1,
        "content_description": f"Evidence for {label}; no outline, no probability"[:64],
        "series_description": f"{context.identity.release.study} evidence map (research)"[:64],
        "specific_character_set": UNICODE,
        **context.common_attributes(header),
    }


def _completed(context: ResultContext, dataset: Dataset, scan: ScanAnswer, label: str) -> Dataset:
    header = context.header(scan.images)
    context.complete(dataset, header)
    dataset.DerivationDescription = f"Evidence for {label}, model sha256 {context.identity.model_digest}"
    organization = context.uid(EVIDENCE_MAP, str(dataset.SOPInstanceUID), "dimensions")  # else drawn at random
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return dataset


def _source(plane: Plane, header: Dataset) -> Dataset:
    """The header of an image with its place in the patient, as highdicom asks for it."""
    source = image_header(plane.image, header)
    source.FrameOfReferenceUID = plane.frame_of_reference
    source.ImagePositionPatient, source.ImageOrientationPatient = list(plane.position), list(plane.orientation)
    source.PixelSpacing, source.SliceThickness = list(plane.spacing), plane.thickness
    return source

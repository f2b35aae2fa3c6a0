"""Where the evidence is, as a Secondary Capture (PS3.3 A.8): the scan in grey with the evidence in colour over it.

It is neither a Segmentation nor a Parametric Map: what a region adds to a logit is no outline of a finding, no
probability and no quantity with a unit, and viewers would treat it as such. The picture says in its own pixels what it
is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.valuerep import DA, TM
from skimage.transform import resize

from medopt.core.records import Volume
from medopt.pacs.result_objects import ModelIdentity, ResultContext, ScanAnswer, encode_object
from medopt.pacs.study_header import element_texts, image_header
from medopt.pacs.worker_protocol import OutgoingObject
from medopt.transforms.display import displayed, most_active, overlay
from medopt.transforms.restore import spread_out, to_scan

HEAT_MAP = "heat map"
_MIN_SIDE, _MAX_SIDE = 512, 1024  # pixels of the longer side


def heat_maps(
    context: ResultContext, scan: ScanAnswer, volume: Volume, evidence: NDArray[np.float64]
) -> list[OutgoingObject]:
    """A picture for each finding that is present or undecided; none for absent findings or declined scans.

    `evidence` (K, *grid) is what each region of the prepared scan added to each logit.
    """
    identity = context.identity
    if identity.release.task == "multiclass":  # a softmax ignores what all outputs share
        evidence = evidence - evidence.mean(axis=0)
    outputs = list(identity.reported_labels)
    objects = []
    for label in mapped_labels(identity, scan):
        picture = _picture(identity, scan, label, volume, evidence[outputs.index(label)])
        objects.append(encode_object(HEAT_MAP, _secondary_capture(context, scan, label, picture)))
    return objects


def mapped_labels(identity: ModelIdentity, scan: ScanAnswer) -> list[str]:
    """The findings of a scan that get a picture."""
    if scan.answer.declined:
        return []
    return [label for label in identity.reported_labels if scan.presence(label) != "Absent"]


def _picture(
    identity: ModelIdentity, scan: ScanAnswer, label: str, volume: Volume, evidence: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The overlay (H, W, 3) with a caption below; of a volume the slice with most of the evidence."""
    config = identity.release.prepare
    positive = torch.from_numpy(np.maximum(evidence, 0).astype(np.float32))
    spread = spread_out(config.size)(positive[None, None])[0]
    shape, spacing = volume.array.shape[1:], volume.spacing_mm[-volume.spatial_dims :]
    grey, heat = most_active(displayed(volume, config), to_scan(spread, shape, spacing, config)[0].numpy())
    maximum = float(heat.max())
    sides = _display_sides(grey.shape, spacing[-2:])
    blended = overlay(resize(grey, sides, anti_aliasing=True), resize(heat / maximum if maximum > 0 else heat, sides))
    grid = " x ".join(str(side) for side in evidence.shape)
    caption = (
        f"Where the evidence for '{label}' lay ({100 * scan.answer.probabilities[label]:.0f} %), in {grid} "
        "places.\nNo outline of a finding. Research software, unverified."
    )
    return _with_caption(np.rint(255 * blended).astype(np.uint8), caption)


def _display_sides(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, int]:
    """Height and width in square pixels, the longer side within the bounds."""
    height, width = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    longest = min(max(*shape, _MIN_SIDE), _MAX_SIDE)
    return max(1, round(longest * height / max(height, width))), max(1, round(longest * width / max(height, width)))


def _with_caption(picture: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """The picture with a caption below, at least wide enough for it."""
    width = max(picture.shape[1], _MIN_SIDE)
    size = width // 40
    canvas = Image.new("RGB", (width, len(picture) + 3 * size))
    canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
    font = ImageFont.load_default(size)
    position = (size, len(picture) + size // 4)
    ImageDraw.Draw(canvas).multiline_text(position, caption, fill=(235, 235, 235), font=font)
    return np.asarray(canvas)


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
    laterality, moment = element_texts(scan.images[0], "Laterality"), context.moment(header)
    capture.Laterality = laterality[0] if laterality in (["L"], ["R"]) else ""
    capture.PatientOrientation = _patient_orientation(scan)
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = DA(moment.date()), TM(moment.time())
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # the caption names no patient
    capture.DerivationDescription = f"Evidence for {label}, model sha256 {context.identity.model_digest}"
    capture.SourceImageSequence = [_reference(image) for image in scan.images]
    return capture


def _patient_orientation(scan: ScanAnswer) -> list[str]:
    """That of a single image, whose rows and columns the picture keeps; empty if it is not known."""
    axes = element_texts(scan.images[0], "PatientOrientation") if len(scan.images) == 1 else []
    return axes if len(axes) == 2 and all(re.fullmatch("[APRLHF]{1,3}", axis) for axis in axes) else []


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return reference

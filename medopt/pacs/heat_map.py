"""Where the evidence lay, as a Secondary Capture (PS3.3 A.8): the scan in grey with the places in colour over it.

Neither a Segmentation nor a Parametric Map: what a place adds to a logit is no outline of a finding, no probability of
one and no quantity with a unit, and viewers would treat it as such. A picture says what it is in its own pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import torch
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.valuerep import DA, TM
from skimage.transform import resize

from medopt.core.records import Volume
from medopt.pacs.dicom_object import OutgoingObject
from medopt.pacs.settings import Results
from medopt.pacs.structured_report import ModelIdentity, Namer, ScanAnswer, findings, made_by, made_of, plain, presence
from medopt.transforms.display import displayed, most_active, overlay
from medopt.transforms.restore import spread_out, to_scan

HEAT_MAP = "heat map"
_LEAST, _MOST = 512, 1024  # pixels of the longer side


def heat_maps(
    origin: ModelIdentity, one: ScanAnswer, volume: Volume, places: NDArray[np.float64], uid: Namer, wanted: Results,
    now: datetime,
) -> list[OutgoingObject]:  # fmt: skip
    """A picture for each finding that is present or undecided; none of what is absent, or of a scan that is declined.

    `places` (K, *places) is what each place of the prepared scan added to each logit.
    """
    if origin.info.task == "multiclass":  # a softmax takes no notice of what all outputs share
        places = places - places.mean(axis=0)
    outputs, found = list(findings(origin.info)), []
    for label in shown(origin, one):
        picture = _picture(origin, one, label, volume, places[outputs.index(label)])
        found.append(made_of(HEAT_MAP, _capture(origin, one, label, picture, uid, wanted, now)))
    return found


def shown(origin: ModelIdentity, one: ScanAnswer) -> list[str]:
    """The findings of a scan that get a picture."""
    if one.answer.declined:
        return []
    return [label for label in findings(origin.info) if presence(one.answer, label) != "Absent"]


def _picture(
    origin: ModelIdentity, one: ScanAnswer, label: str, volume: Volume, places: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The overlay (H, W, 3) with what it is beneath it; of a volume the slice in which most of the evidence lies."""
    config = origin.info.prepare
    small = torch.from_numpy(np.maximum(places, 0).astype(np.float32))
    spread = spread_out(config.size)(small[None, None])[0]
    shape, spacing = volume.array.shape[1:], volume.spacing_mm[-volume.spatial_dims :]
    grey, map_ = most_active(displayed(volume, config), to_scan(spread, shape, spacing, config)[0].numpy())
    top = float(map_.max())
    sides = _sides(grey.shape, spacing[-2:])
    lit = overlay(resize(grey, sides, anti_aliasing=True), resize(map_ / top if top > 0 else map_, sides))
    words = (
        f"Where the evidence for '{label}' lay ({100 * one.answer.probabilities[label]:.0f} %), in {_grid(places)} "
        "places.\nNo outline of a finding. Research software, unverified."
    )
    return _captioned(np.rint(255 * lit).astype(np.uint8), words)


def _grid(places: NDArray[np.float64]) -> str:
    return " x ".join(str(side) for side in places.shape)


def _sides(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, int]:
    """Square pixels, the longer side within the bounds."""
    high, wide = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    longest = min(max(*shape, _LEAST), _MOST)
    return max(1, round(longest * high / max(high, wide))), max(1, round(longest * wide / max(high, wide)))


def _captioned(picture: NDArray[np.uint8], words: str) -> NDArray[np.uint8]:
    """The picture with a strip of words beneath, at least wide enough for them."""
    wide = max(picture.shape[1], _LEAST)
    size = wide // 40
    whole = Image.new("RGB", (wide, len(picture) + 3 * size))
    whole.paste(Image.fromarray(picture), ((wide - picture.shape[1]) // 2, 0))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(whole).multiline_text((size, len(picture) + size // 4), words, fill=(235, 235, 235), font=font)
    return np.asarray(whole)


def _capture(
    origin: ModelIdentity,
    one: ScanAnswer,
    label: str,
    picture: NDArray[np.uint8],
    uid: Namer,
    wanted: Results,
    now: datetime,
) -> Dataset:
    image, first = plain(one.images[0]), str(one.images[0].SOPInstanceUID)
    capture = SCImage.from_ref_dataset(
        image,
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=uid(HEAT_MAP, "series"),
        series_number=wanted.series_number + 2,
        sop_instance_uid=uid(HEAT_MAP, first, label),
        instance_number=1,
        series_description=f"{origin.info.study} evidence (research)"[:64],
        **made_by(origin, now),
    )
    capture.Laterality = str(one.images[0].get("Laterality") or "")
    capture.PatientOrientation = _orientation(one)
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = DA(now.date()), TM(now.time())
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # its words name no patient
    capture.DerivationDescription = f"Evidence for {label}, model sha256 {origin.model_digest}"
    capture.SourceImageSequence = [_reference(image) for image in one.images]
    return capture


def _orientation(one: ScanAnswer) -> list[str]:
    """That of a single image, whose rows and columns the picture keeps; empty where it is not known."""
    found = one.images[0].get("PatientOrientation") if len(one.images) == 1 else None
    return [str(axis) for axis in found] if found and len(found) == 2 else []


def _reference(image: Dataset) -> Dataset:
    found = Dataset()
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return found

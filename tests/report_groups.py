"""The measurement groups of a TID 1500 report, as highdicom reads them, and the images that each is about."""

from __future__ import annotations

import io
from typing import Any

from highdicom import sr


def measurement_groups(content: bytes) -> list[Any]:
    report = sr.srread(io.BytesIO(content)).content
    return [
        *report.get_planar_roi_measurement_groups(),
        *report.get_volumetric_roi_measurement_groups(),
        *report.get_image_measurement_groups(),
    ]


def source_uids(group: Any) -> list[str]:
    """The SOP instance UIDs of the images of its regions, or, without a region, of its source images."""
    items = list(group[0].ContentSequence)
    regions = [item.ContentSequence[0] for item in items if item.ValueType == "SCOORD"]
    images = regions or group.source_images
    return [str(image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for image in images]

"""Small scans of made-up patients: DICOM series with planted identifiers, and PNG images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def mr_series(
    folder: Path,
    patient: str,
    study: str,
    description: str = "T1",
    slices: int = 3,
    name: str = "I",
    kind: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "OTHER"),
    scale: int = 1,
    **elements: str,
) -> str:
    """Write an axial MR series of `slices` files that read_scan reads; returns its SeriesInstanceUID."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[patient, study, description])
    for at in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid, str(at)])
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = patient, study, uid
        data.Modality, data.SeriesDescription, data.ImageType = "MR", description, list(kind)
        data.PatientAge, data.PatientSex = "061Y", "F"
        data.FrameOfReferenceUID = generate_uid(entropy_srcs=[study])
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * at]
        data.PixelSpacing, data.SliceThickness = [1, 1], 2
        data.Rows = data.Columns = 4
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.PixelData = np.full((4, 4), scale * at, np.uint16).tobytes()
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        data.save_as(folder / f"{name}{at}", enforce_file_format=True)
    return uid


def png(path: Path, value: int = 0) -> Path:
    """A grey image of 2 x 2 pixels, below folders that may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)
    return path

"""Scans made for tests: the same voxels written as DICOM slices, as an enhanced multi-frame object, and as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def letter_f(shape: tuple[int, int, int] = (4, 9, 7)) -> np.ndarray:
    """An F in canonical order (D, H, W): no rotation, reflection or exchange of axes leaves it as it is."""
    volume = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    volume[1:, 1:8, 1] = 1000
    volume[1:, 1, 1:6] = 1000
    volume[1:, 4, 1:4] = 1000
    volume[1] += 500
    return volume


def canonical_affine(
    spacing: tuple[float, float, float] = (2.5, 0.75, 0.5), turn: np.ndarray | None = None
) -> np.ndarray:
    """Index (d, h, w) to LPS mm of a volume in canonical order, turned by a rotation (3, 3)."""
    directions = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # columns: superior, posterior, left
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ directions * spacing
    affine[:3, 3] = (-30.0, 12.5, 101.0)
    return affine


def regridded(
    volume: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flip: tuple[bool, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels with exchanged and reversed axes, and the affine that says so."""
    grid, moved = volume.transpose(order), affine.copy()
    moved[:, :3] = affine[:, list(order)]
    for axis in np.flatnonzero(flip):
        grid = np.flip(grid, axis)
        moved[:3, 3] += moved[:3, axis] * (grid.shape[axis] - 1)
        moved[:3, axis] *= -1
    return grid, moved


def rotation(about: tuple[float, float, float], degrees: float) -> np.ndarray:
    """A rotation matrix (Rodrigues)."""
    x, y, z = np.array(about) / np.linalg.norm(about)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def image(pixels: np.ndarray, sop_class: str = CTImageStorage, **elements: Any) -> FileDataset:
    """A DICOM image of integer pixels (rows, columns[, 3]) or (frames, rows, columns), uncompressed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.shape[-1] == 3 and pixels.ndim == 3 and pixels.dtype == np.uint8
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID = "SECRET-17", "Doe^Jane", "1.2.826.0.1.1"
    dataset.SeriesInstanceUID, dataset.Modality = "1.2.826.0.1.2", "CT"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    if dataset.Modality == "CT":
        dataset.setdefault("RescaleSlope", 1)
        dataset.setdefault("RescaleIntercept", 0)
    return dataset


def radiograph(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """A DX image for presentation."""
    return image(pixels, DigitalXRayImageStorageForPresentation, **{"Modality": "DX"} | elements)


def saved(dataset: Dataset, path: Path) -> Path:
    """Write the dataset as a DICOM file, below folders that may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(path, enforce_file_format=True)
    return path


def slices(grid: np.ndarray, affine: np.ndarray, **elements: Any) -> list[FileDataset]:
    """One CT image for each grid[k]; `affine` maps (k, row, column) to LPS mm. InstanceNumber tells nothing."""
    down, right = affine[:3, 1], affine[:3, 2]
    made = []
    for k, pixels in enumerate(grid):
        dataset = image(np.ascontiguousarray(pixels))
        dataset.InstanceNumber = (k * 7) % 5
        dataset.ImagePositionPatient = _decimal(affine[:3, 3] + k * affine[:3, 0])
        dataset.ImageOrientationPatient = _decimal([*right / np.linalg.norm(right), *down / np.linalg.norm(down)])
        dataset.PixelSpacing = _decimal([np.linalg.norm(down), np.linalg.norm(right)])
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        made.append(dataset)
    return made


def _decimal(values: Any) -> list[str]:
    return [f"{value:.10g}"[:16] for value in values]


def series(folder: Path, datasets: list[FileDataset]) -> Path:
    """Save a series under names that tell nothing of its order."""
    for index, dataset in enumerate(datasets):
        saved(dataset, folder / f"I{(index * 31 + 17) % 97:03d}")
    return folder


def enhanced(grid: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> FileDataset:
    """The same as one enhanced CT object: orientation and spacing shared, position and rescale per frame."""
    parts = slices(grid, affine)
    dataset = image(np.ascontiguousarray(grid), EnhancedCTImageStorage, NumberOfFrames=len(grid))
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PlaneOrientationSequence=_item(ImageOrientationPatient=parts[0].ImageOrientationPatient),
            PixelMeasuresSequence=_item(PixelSpacing=parts[0].PixelSpacing),
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=_item(ImagePositionPatient=part.ImagePositionPatient),
            PixelValueTransformationSequence=_item(RescaleSlope=slope, RescaleIntercept=intercept + k),
            FrameVOILUTSequence=_item(WindowCenter=40 + k, WindowWidth=400),
        )
        for k, part in enumerate(parts)
    ]
    return dataset


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, Sequence([value]) if isinstance(value, Dataset) else value)
    return item


def nifti(path: Path, grid: np.ndarray, affine: np.ndarray, slope: float | None = None) -> Path:
    """The grid as NIfTI; `affine` maps its indices to LPS mm."""
    made = nibabel.Nifti1Image(grid, RAS_FROM_LPS @ affine)
    if slope is not None:
        made.header.set_slope_inter(slope, -10.0)
    made.set_sform(RAS_FROM_LPS @ affine, code=1)
    made.set_qform(RAS_FROM_LPS @ affine, code=1)
    nibabel.save(made, path)
    return path


def lookup(entries: list[int], first: int, bits: int) -> Sequence:
    """A LUT sequence of one table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])

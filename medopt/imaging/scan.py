"""The one door to pixels: every caller, in training and in service, reads scans by `read_scan` and by nothing else."""

from __future__ import annotations

from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging.dicom_file import is_dicom
from medopt.imaging.dicom_series import read_dicom, read_series
from medopt.imaging.nifti import is_nifti, read_nifti
from medopt.imaging.raster import is_image, read_image, read_npz
from medopt.imaging.scan_path import parted


def read_scan(path: Path | str, *, data: Path | None = None) -> Volume:
    """Read a scan: its format is told from its content (NIfTI: from its name).

    `path` is a DICOM, NIfTI (.nii, .nii.gz), PNG, JPEG, TIFF or BMP file; a folder that holds one DICOM series; one of
    the series of a folder, `folder#SeriesInstanceUID`; or a member of an archive, `file.npz#array/index`. A relative
    path is looked for below `data` where that is given.

    Returns a Volume: `array` is float32, (C, H, W) in display order for an image, (C, D, H, W) with axes toward
    Superior, Posterior, Left for a volume (see `medopt.imaging.geometry`), in the scan's own units (HU for CT),
    `spacing_mm` and `affine` in millimetres. Raises DataError, and nothing else, naming the file and the reason.
    Source: DICOM PS3.3 C.7.6.2.1.1 (geometry), C.7.6.3 (pixels), C.11.1 (rescaling).

    From the first DICOM file on, pydicom in this process validates nothing that it reads and says nothing, as its
    remarks may quote identifiers.

    >>> import medopt
    >>> manifest = medopt.draw_study("phantom-data/phantom", patients=30)
    >>> volume = medopt.read_scan(manifest.parent / "images/site_a/phantom-a001_1.dcm")
    >>> volume.array.shape, volume.array.dtype, volume.modality, volume.spacing_mm
    ((1, 1280, 1024), dtype('float32'), 'DX', (0.336, 0.336))
    """
    place = Path(path) if data is None else data / path
    try:
        return _read(place)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror or type(error).__name__}.") from error
    except Exception as error:
        raise DataError(
            f"{place} cannot be read: it is damaged in a way not foreseen ({type(error).__name__})."
        ) from error


def _read(path: Path) -> Volume:
    if path.is_dir():
        return read_series(path)
    place, part = parted(path)
    if part:
        return read_series(place, part) if place.is_dir() else read_npz(place, part)
    if not path.exists():
        raise DataError(f"There is no file {path}. Check the image path and the data folder (--data, MEDOPT_DATA).")
    with path.open("rb") as stream:
        head = stream.read(132)
    if not head:
        raise DataError(f"{path} is empty (0 bytes). Get it again from its source.")
    if is_image(head):
        return read_image(path)
    if is_dicom(head):
        return read_dicom(path)
    if is_nifti(path.name):
        return read_nifti(path)
    if head.startswith(b"PK"):
        raise DataError(f"{path} is an archive: say which image of it is meant, as in {path.name}#array/index.")
    raise DataError(f"{path} is not a format that is read: DICOM, NIfTI, PNG, JPEG, TIFF, BMP, or a member of an .npz.")

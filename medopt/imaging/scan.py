"""The one entry point to pixels: every caller, in training and in service, reads scans with `read_scan`."""

from __future__ import annotations

from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging.dicom_file import is_dicom
from medopt.imaging.dicom_series import read_dicom, read_series
from medopt.imaging.nifti import is_nifti, read_nifti
from medopt.imaging.raster import is_image, read_image, read_npz
from medopt.imaging.scan_path import split_part


def read_scan(path: Path | str, *, data: Path | str | None = None) -> Volume:
    """Read a scan of any supported format as a Volume.

    The format follows from the content of the file (NIfTI: from its name). `path` is one of:

    - a DICOM, NIfTI (.nii, .nii.gz), PNG, JPEG, TIFF, BMP, WebP, GIF or JPEG 2000 file;
    - a folder that holds one DICOM series, or `folder#SeriesInstanceUID` for one of several;
    - `file.npz#array/index` for one image of an archive, or `file.npz#array`.

    A relative path starts from `data` where that is given.

    The array is float32: (C, H, W) for an image, in the order in which it is displayed, and (C, D, H, W) for a volume,
    whose axes run toward Superior, Posterior and Left; C is 1 for grey and 3 for colour. Values are in the unit of the
    scan: Hounsfield units for CT, stored values after rescaling elsewhere, 0 to 255 for colour in DICOM. `affine`
    (4, 4) maps an index to millimetres in DICOM's patient system LPS (PS3.3 C.7.6.2.1.1), and `spacing_mm` follows the
    spatial axes; `source["spacing"]` begins with "unknown" where a file gives no spacing and 1 mm is assumed.

    Raises DataError, and nothing else, naming the file and the reason.

    From the first DICOM file on, pydicom in this process validates nothing that it reads and reports nothing, because
    its remarks may quote identifiers.

    >>> import nibabel, tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name) / "brain.nii.gz"
    >>> nibabel.save(nibabel.Nifti1Image(np.zeros((40, 50, 30), np.float32), np.diag([0.75, 0.75, 1.5, 1.0])), file)
    >>> volume = read_scan(file)
    >>> volume.array.shape, volume.array.dtype
    ((1, 30, 50, 40), dtype('float32'))
    >>> volume.spacing_mm
    (1.5, 0.75, 0.75)
    >>> folder.cleanup()
    """
    file = Path(path) if data is None else Path(data) / path
    try:
        return _read(file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or type(error).__name__}.") from error
    except RecursionError as error:
        raise DataError(f"{file} cannot be read: its header nests sequences too deeply. It is damaged.") from error
    except MemoryError as error:
        raise DataError(
            f"{file} cannot be read: it claims more pixels than this machine has memory for. It is damaged, or too "
            "large for this machine."
        ) from error
    except Exception as error:
        raise DataError(
            f"{file} cannot be read: it is damaged in a way that was not foreseen ({type(error).__name__})."
        ) from error


def _read(path: Path) -> Volume:
    if path.is_dir():
        return read_series(path)
    container, part = split_part(path)
    if part:
        return read_series(container, part) if container.is_dir() else read_npz(container, part)
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
        raise DataError(f"{path} is an archive: name one image of it, as in {path.name}#array/index.")
    raise DataError(
        f"{path} is not a format that is read: DICOM, NIfTI, PNG, JPEG, TIFF, BMP, WebP, GIF, "
        "JPEG 2000, or a member of an .npz."
    )

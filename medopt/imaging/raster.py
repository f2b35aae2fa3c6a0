"""PNG, JPEG, TIFF and BMP images, and members of `.npz` archives, to Volume: scans without a place in the patient."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging import geometry
from medopt.imaging.codestream import DamagedStreamError, check_jpeg
from medopt.imaging.deep_raster import read_deep

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")
_NUMERIC_MODES = {"L", "I", "F", "RGB", "I;16", "I;16B", "I;16L", "I;16N"}
_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM", b"GIF8", b"\xff\x4f\xff\x51")
_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_NO_GEOMETRY = {"spacing": "unknown: 1.0 is assumed", "orientation": "unknown"}


def is_image(head: bytes) -> bool:
    """Whether a file whose first 132 bytes are `head` is one of FORMATS. DICOM may begin like a TIFF (PS3.10 7.1)."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return (webp or head.startswith((*_SIGNATURES, _JP2))) and head[128:132] != b"DICM"


def read_image(path: Path) -> Volume:
    """An image as it is displayed (EXIF orientation applied): (1, H, W) grey or (3, H, W) colour, stored values.

    Raises DataError where it is damaged, has several pages, or is partly transparent.
    """
    with _as_data_error(path), path.open("rb") as stream:
        deep = read_deep(path, stream.read(26))
        if deep is not None:
            return _volume(*deep)
        stream.seek(0)
        with Image.open(stream, formats=FORMATS) as opened:
            image_format = str(opened.format)
            pages = 1 if image_format == "MPO" else getattr(opened, "n_frames", 1)  # a camera's JPEG and its preview
            if pages > 1:
                raise DataError(f"{path} holds {pages} pages, and one is needed. Save one page as a file.")
            if image_format in ("JPEG", "MPO") and opened.mode in ("L", "RGB"):
                check_jpeg(path.read_bytes())
            return _volume(np.asarray(_opaque(ImageOps.exif_transpose(opened), path)), image_format)


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Whatever a library raises on a damaged file, as DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, DamagedStreamError) else type(error).__name__
        raise DataError(f"{path} is not readable as an image ({reason}). Get it again from its source.") from error


def _opaque(image: Image.Image, path: Path) -> Image.Image:
    """The image in a mode whose numbers are grey or RGB values."""
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("LA" if image.mode == "LA" else "RGBA")
        lowest = with_alpha.getchannel("A").getextrema()[0]
        if lowest != 255:
            raise DataError(
                f"{path} is partly transparent, so what its pixels show is not defined. Save it without alpha."
            )
        return with_alpha.convert("L" if image.mode == "LA" else "RGB")
    if image.mode in _NUMERIC_MODES:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _volume(pixels: NDArray[Any], image_format: str) -> Volume:
    """(H, W), (H, W, 3), (D, H, W) or (D, H, W, 3) to a Volume with channels first and a spacing of 1 mm."""
    has_colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    channels_first = np.moveaxis(pixels, -1, 0) if has_colour else pixels[None]
    array = np.array(channels_first, dtype=np.float32, order="C")
    spacing_mm = (1.0,) * (array.ndim - 1)
    return Volume(array, geometry.default_affine(), spacing_mm, source={"format": image_format} | _NO_GEOMETRY)


def read_npz(archive: Path, member: str) -> Volume:
    """A member `array/index` of an `.npz` archive, or `array` where the whole array is one image.

    (H, W) and (H, W, 3) become images; (D, H, W) and (D, H, W, 3) become volumes. Only the bytes up to the item are
    read; nothing is unpickled. Raises DataError naming the arrays of the archive.
    """
    name, _, index = member.partition("/")
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [entry.removesuffix(".npy") for entry in opened.namelist()]
            if name not in names:
                raise DataError(
                    f"{archive} has no array '{name}'; it has {', '.join(names)}. Write {archive.name}#array/index."
                )
            with opened.open(f"{name}.npy") as stream:
                pixels = _read_item(stream, index, f"{archive}#{member}")
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file {archive}.") from error
    except Exception as error:
        raise DataError(
            f"{archive}#{member} cannot be read ({type(error).__name__}). Get the file again from its source."
        ) from error
    return _member_volume(pixels, f"{archive}#{member}")


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each array of an `.npz` file, from their headers alone.

    Raises DataError, naming no file, where it is not an `.npz` file.
    """
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    shapes[name.removesuffix(".npy")] = _read_npy_header(stream)[0]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"not an .npz file: {error}") from None
    return shapes


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of a .npy stream (https://numpy.org/neps/nep-0001-npy-format.html)."""
    version = npy.read_magic(stream)
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)


def _read_item(stream: IO[bytes], index: str, name: str) -> NDArray[Any]:
    """One item along the first axis of a .npy stream, or the whole array where `index` is empty."""
    shape, fortran, dtype = _read_npy_header(stream)
    if dtype.hasobject or fortran:
        raise DataError(f"{name}: arrays of Python objects or in Fortran order are not read. Save it as plain numbers.")
    start = 0
    if index:
        if not index.isdigit() or int(index) >= shape[0]:
            raise DataError(f"{name}: the index must be a number from 0 to {shape[0] - 1}.")
        shape = shape[1:]
        start = int(index)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    stream.seek(start * size, 1)
    data = stream.read(size)
    if len(data) != size:
        raise DataError(f"{name}: the array breaks off. Get the file again from its source.")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _member_volume(pixels: NDArray[Any], name: str) -> Volume:
    spatial_dims = pixels.ndim - (pixels.ndim > 2 and pixels.shape[-1] == 3)
    if pixels.dtype.kind not in "biuf" or spatial_dims not in (2, 3) or 0 in pixels.shape:
        raise DataError(
            f"{name} has the shape {pixels.shape} of {pixels.dtype}: neither an image nor a volume of numbers."
        )
    return _volume(pixels, "npz")

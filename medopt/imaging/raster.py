"""PNG, JPEG, TIFF and BMP images, and members of `.npz` archives, to Volume: scans that lie nowhere in the patient."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging import geometry

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_NUMBERS = {"L", "I", "F", "RGB", "I;16", "I;16B", "I;16L", "I;16N"}
_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM")
_NOWHERE = {"spacing": "unknown: 1.0 is assumed", "orientation": "unknown"}


def is_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one of FORMATS. DICOM may begin like a TIFF (PS3.10 7.1)."""
    return head.startswith(_SIGNATURES) and head[128:132] != b"DICM"


def read_image(path: Path) -> Volume:
    """An image as it is displayed: (1, H, W) grey or (3, H, W) colour, stored values, rows and columns not exchanged.

    Raises DataError where it is damaged, has several pages, or is partly transparent.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            kind = str(opened.format)
            pages = getattr(opened, "n_frames", 1)
            pixels = np.asarray(_opaque(ImageOps.exif_transpose(opened), path)) if pages == 1 else None
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} is not readable as an image ({type(error).__name__}). Get it again from its source."
        ) from error
    if pixels is None:
        raise DataError(f"{path} holds {pages} pages, and which one is meant is not said. Save one page as a file.")
    return _flat(pixels, {"format": kind})


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
    if image.mode in _NUMBERS:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _flat(pixels: NDArray[Any], facts: dict[str, str]) -> Volume:
    """(H, W) or (H, W, 3) to a Volume of 1 mm pixels."""
    stacked = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    array = np.array(stacked, dtype=np.float32, order="C")
    return Volume(array, geometry.unplaced(), (1.0, 1.0), source=facts | _NOWHERE)


def read_npz(archive: Path, member: str) -> Volume:
    """A member `array/index` of an `.npz` archive, or `array` alone where it is a single image.

    (H, W) and (H, W, 3) become images; (D, H, W) and (D, H, W, 3) volumes. Only the bytes up to the wanted item are
    read; nothing is unpickled. Raises DataError naming the arrays there are.
    """
    name, _, place = member.partition("/")
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [entry.removesuffix(".npy") for entry in opened.namelist()]
            if name not in names:
                raise DataError(
                    f"{archive} has no array '{name}'; it has {', '.join(names)}. Write {archive.name}#array/index."
                )
            with opened.open(f"{name}.npy") as stream:
                pixels = _item(stream, place, f"{archive}#{member}")
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file {archive}.") from error
    except Exception as error:
        raise DataError(
            f"{archive}#{member} cannot be read ({type(error).__name__}). Get the file again from its source."
        ) from error
    return _member(pixels, f"{archive}#{member}")


def _item(stream: IO[bytes], place: str, name: str) -> NDArray[Any]:
    """One item along the first axis of a .npy stream (https://numpy.org/neps/nep-0001-npy-format.html)."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or fortran:
        raise DataError(f"{name}: arrays of Python objects or in Fortran order are not read. Save it as plain numbers.")
    start = 0
    if place:
        if not place.isdigit() or int(place) >= shape[0]:
            raise DataError(f"{name}: the index must be a number from 0 to {shape[0] - 1}.")
        shape = shape[1:]
        start = int(place)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    stream.seek(start * size, 1)
    data = stream.read(size)
    if len(data) != size:
        raise DataError(f"{name}: the array breaks off. Get the file again from its source.")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _member(pixels: NDArray[Any], name: str) -> Volume:
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    if pixels.dtype.kind not in "biuf" or pixels.ndim - colour not in (2, 3) or 0 in pixels.shape:
        raise DataError(
            f"{name} has the shape {pixels.shape} of {pixels.dtype}: neither an image nor a volume of numbers."
        )
    if pixels.ndim - colour == 2:
        return _flat(pixels, {"format": "npz"})
    stacked = np.moveaxis(pixels, -1, 0) if colour else pixels[None]
    array = np.array(stacked, dtype=np.float32, order="C")
    return Volume(array, geometry.unplaced(), (1.0, 1.0, 1.0), source={"format": "npz"} | _NOWHERE)

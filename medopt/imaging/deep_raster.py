"""Images of which Pillow keeps 8 bits or misreads the sign: PNG of 16 bits in colour or alpha, JPEG 2000, many TIFF.

TIFF samples are of more than 8 bits, signed or of floating point, as their tags say (TIFF 6.0, sections 3, 4 and 19).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.imaging.codestream import check_j2k

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UNSIGNED = 1
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892, 34934)  # tag 259: old and new JPEG, and vendors' (libtiff, TechNote 2)
_SAMPLES = {_WHITE_IS_ZERO: (1, 2), _BLACK_IS_ZERO: (1, 2), _RGB: (3, 4)}


def read_deep(path: Path, head: bytes) -> tuple[NDArray[Any], str] | None:
    """The stored values (H, W) or (H, W, 3) of such an image, as displayed, and its format; None for any other.

    `head` are its first 26 bytes. A JPEG 2000 file is read here whatever its bits, and looked over for holes. Raises
    DataError for an image that is transparent, of several pages or JPEG within TIFF, and what the decoders raise where
    it is damaged.
    """
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] != 0:
        import imagecodecs

        return _opaque(imagecodecs.png_decode(path.read_bytes()), path), "PNG"
    if head[4:8] == b"jP  " or head[:4] == b"\xff\x4f\xff\x51":
        import imagecodecs

        data = path.read_bytes()
        check_j2k(data)
        return _opaque(imagecodecs.jpeg2k_decode(data), path), "JPEG2000"
    if head[:4] in (b"II*\x00", b"MM\x00*"):
        pixels = _read_tiff(path)
        return None if pixels is None else (pixels, "TIFF")
    return None


def _opaque(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """(H, W) or (H, W, 3) of pixels that may have alpha as last of 2 or 4 samples; refuses what shines through."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if pixels[..., -1].min() != np.iinfo(pixels.dtype).max:
            raise DataError(
                f"{path} is partly transparent, so what its pixels show is not defined. Save it without alpha."
            )
        pixels = pixels[..., :-1]
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _read_tiff(path: Path) -> NDArray[Any] | None:
    """None where samples are unsigned and of 8 bits at most. WhiteIsZero is inverted within its bits."""
    import tifffile

    with tifffile.TiffFile(path) as opened:
        page = opened.pages.first
        bits, sample_format = page.bitspersample, page.sampleformat
        if int(page.compression) in _JPEG_COMPRESSIONS:
            raise DataError(
                f"{path} holds JPEG within TIFF, whose damage is not noticed. Save it as TIFF without JPEG."
            )
        if bits <= 8 and sample_format in (None, _UNSIGNED):
            return None
        if len(opened.pages) > 1:
            raise DataError(f"{path} holds {len(opened.pages)} pages, and one is needed. Save one page as a file.")
        photometric, orientation = int(page.photometric), int(page.tags.valueof(274, default=1))
        pixels = page.asarray()
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    is_integer = pixels.dtype.kind in "ui"
    if (
        samples not in _SAMPLES.get(photometric, ())
        or pixels.dtype.kind not in "uif"
        or (samples > 1 and not is_integer)
    ):
        raise DataError(
            f"{path} holds {samples} samples a pixel of {pixels.dtype} (photometric interpretation {photometric}), "
            "which are neither grey nor RGB values. Save it as grey or RGB."
        )
    pixels = _opaque(pixels, path) if samples > 1 else pixels
    if photometric == _WHITE_IS_ZERO:
        if not is_integer:
            raise DataError(f"{path}: WhiteIsZero with floating-point samples: what is black is not defined.")
        pixels = (2**bits - 1 if pixels.dtype.kind == "u" else -1) - pixels.astype(np.int64)
    return _turned(pixels, orientation)


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """As displayed (tag 274): 1 is the row at the top and the column at the left."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]

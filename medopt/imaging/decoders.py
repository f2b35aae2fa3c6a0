"""The decoders of compressed pixels, behind pydicom's plugin interface: one plugin that asks several in turn.

The fastest is asked first, the others where it fails (`benchmarks/decoders.py` has the times). A frame is checked
before, because most decoders fill in what is missing; after a strict decoder called a frame damaged, a tolerant one is
not asked. pydicom documents the interface under "decoder plugins": `is_available`, `DECODER_DEPENDENCIES`, and a
function from a frame's bytes to its samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom._uid_dict import UID_dictionary
from pydicom.pixels import get_decoder
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders import pillow, pyjpegls, pylibjpeg, rle
from pydicom.pixels.decoders.base import Decoder, DecodeRunner

from medopt.imaging.codestream import DamagedStreamError, check_j2k, probe, read_jpeg

PLUGIN = "medopt"
_Decode = Callable[[bytes, DecodeRunner], bytes | bytearray]


def _jpeg(src: bytes, runner: DecodeRunner) -> bytes:
    """Huffman-coded JPEG of 2 to 16 bits, lossy and lossless (libjpeg-turbo), in the colours of the stream."""
    stream = read_jpeg(src)
    colours = imagecodecs.JPEG8.CS.YCbCr if runner.samples_per_pixel == 3 else None
    samples = probe(stream, lambda data: imagecodecs.jpeg8_decode(data, colorspace=colours, outcolorspace=colours))
    highest = 2**runner.bits_stored - 1
    if stream.sof != 0xC3 and runner.pixel_representation == 0 and samples.max() > highest:
        samples = np.minimum(samples, samples.dtype.type(highest))  # an overshoot, which would lose its highest bit
    return _stored(samples, runner)


def _jpeg_ls(src: bytes, runner: DecodeRunner) -> bytes:
    """JPEG-LS (CharLS)."""
    return _stored(imagecodecs.jpegls_decode(src), runner)


def _jpeg_2000(src: bytes, runner: DecodeRunner) -> bytes:
    """JPEG 2000 and its high-throughput form (OpenJPEG), which comes out as RGB."""
    samples = imagecodecs.jpeg2k_decode(src)
    if runner.photometric_interpretation in (PhotometricInterpretation.YBR_ICT, PhotometricInterpretation.YBR_RCT):
        runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    return _stored(samples, runner)


def _rle(src: bytes, runner: DecodeRunner) -> bytes:
    """RLE (PS3.5 annex G): a segment for each byte of each sample, the highest byte first."""
    count, *offsets = np.frombuffer(src, "<u4", 16).tolist()
    pixels, width = runner.rows * runner.columns, runner.bits_allocated // 8
    if count != runner.samples_per_pixel * width or runner.bits_allocated % 8:
        raise DamagedStreamError(
            f"it has {count} RLE segments, and its header means {runner.samples_per_pixel * width}"
        )
    planes = np.empty((runner.samples_per_pixel, pixels, width), np.uint8)
    edges = [*offsets[:count], len(src)]
    for index in range(count):
        segment = imagecodecs.packbits_decode(src[edges[index] : edges[index + 1]])
        if not 0 <= len(segment) - pixels <= 1:
            raise DamagedStreamError(f"an RLE segment holds {len(segment)} of {pixels} bytes")
        planes[index // width, :, width - 1 - index % width] = np.frombuffer(segment, np.uint8, pixels)
    runner.set_option("planar_configuration", 1)
    return planes.tobytes()


def _stored(samples: NDArray[Any], runner: DecodeRunner) -> bytes:
    """Samples as pydicom wants them: interleaved, in the width that the header allocates or the stream needs."""
    shape = (runner.rows, runner.columns, *((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ()))
    if samples.shape != shape:
        raise DamagedStreamError(f"the frame is {samples.shape}, and its header means {shape} pixels")
    if samples.dtype.itemsize * 8 < runner.bits_allocated:
        samples = samples.astype(f"{samples.dtype.kind}{runner.bits_allocated // 8}")
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return samples.tobytes()


def _jpeg_xl(src: bytes, runner: DecodeRunner) -> bytes:
    """JPEG XL (libjxl)."""
    return _stored(imagecodecs.jpegxl_decode(src), runner)


def _jpeg_ls_leniently(src: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """libjpeg fills in what is missing, so it is asked only where CharLS knows no damage of the stream."""
    try:
        imagecodecs.jpegls_decode(src)
    except imagecodecs.JpeglsError as error:
        if _DAMAGE.search(str(error)):
            raise DamagedStreamError(str(error)) from None
    return pylibjpeg._decode_frame(src, runner)


_DAMAGE = re.compile("invalid jpeg-ls stream|too small", re.IGNORECASE)
JPEG_XL = tuple(uid.UID(f"1.2.840.10008.1.2.4.{last}") for last in (110, 111, 112))
"""Lossless, recompressed JPEG, and any (PS3.5 A.4.12 of 2025)."""
for _syntax, _name in zip(JPEG_XL, ("JPEG XL Lossless", "JPEG XL JPEG Recompression", "JPEG XL"), strict=True):
    UID_dictionary.setdefault(_syntax, (_name, "Transfer Syntax", "", "", ""))  # pydicom does not know them yet
_JPEG: dict[str, _Decode] = {"imagecodecs": _jpeg, "pylibjpeg": pylibjpeg._decode_frame}
_JPEG_LS: dict[str, _Decode] = {
    "imagecodecs": _jpeg_ls,
    "pyjpegls": pyjpegls._decode_frame,
    "pylibjpeg": _jpeg_ls_leniently,
}
_JPEG_2000: dict[str, _Decode] = {"pylibjpeg": pylibjpeg._decode_frame, "imagecodecs": _jpeg_2000}
ORDER: dict[uid.UID, dict[str, _Decode]] = {
    uid.JPEGBaseline8Bit: _JPEG | {"pillow": pillow._decode_frame},
    **dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), _JPEG),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, _JPEG_LS),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), _JPEG_2000),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), _JPEG_2000),
    uid.RLELossless: {"imagecodecs": _rle, "pydicom": rle._decode_frame},
    **{syntax: {"imagecodecs": _jpeg_xl} for syntax in JPEG_XL},
}
"""For each transfer syntax the decoders in the order in which they are asked."""
DECODER_DEPENDENCIES = dict.fromkeys(ORDER, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Whether the plugin decodes a transfer syntax; pydicom asks it."""
    return syntax in ORDER


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """The samples of one frame. Raises DamagedStreamError for a frame that is not whole, else what the decoders say."""
    if runner.transfer_syntax in uid.JPEG2000TransferSyntaxes:
        check_j2k(src)
    options, failures = runner.options.copy(), []
    for name, decode in ORDER[runner.transfer_syntax].items():
        try:
            return decode(src, runner)
        except DamagedStreamError:
            raise
        except Exception as error:
            failures.append(f"{name}: {error}")
            runner.set_options(**options)
    raise RuntimeError("; ".join(failures))


@cache
def decoder_of(syntax: uid.UID) -> Decoder:
    """pydicom's decoder of a transfer syntax, with this plugin if it is compressed.

    Raises NotImplementedError where no installed library reads it.
    """
    decoder = Decoder(syntax) if syntax in JPEG_XL else get_decoder(syntax)
    if syntax in ORDER and PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))
    return decoder

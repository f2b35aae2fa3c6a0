"""Which decoder reads which transfer syntax, how fast, and what does it say of a frame that is not whole?

    python benchmarks/decoders.py [--json] [--repeats 5]

The frame is RG1_UNCR of pydicom-data (1955 x 1841, of 15 bits), cut to the bits of the syntax and encoded here. Each
decoder gets the same bytes, in turn; "medopt" is all that `read_scan` does with them, the check included. Damaged are:
the frame without its last 70 %, with and without an end marker, without its end marker alone, without a tenth from the
middle, and with that tenth as zeros. For each the table tells whether it is refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from rich.console import Console
from rich.table import Table

from medopt.core.provenance import machine
from medopt.imaging.decoders import JPEG_XL, ORDER, PLUGIN, decoder_of
from medopt.imaging.parse_dicom import quiet_pydicom

Pixels = NDArray[np.uint16] | NDArray[np.uint8]
TOLERANCE = {"JPEG Baseline": 8, "JPEG Extended": 128, "JPEG-LS Near": 4, "JPEG 2000 lossy": 512}
"""Largest difference from the encoded pixels that a lossy syntax may have here."""


def jpeg_2000(pixels: Pixels) -> bytes:
    """Without loss, as a codestream alone."""
    return imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", reversible=True, level=0)


def rle(pixels: Pixels) -> bytes:
    """PS3.5 annex G: the high bytes, then the low ones."""
    planes = [np.ascontiguousarray(pixels >> 8).astype(np.uint8), (pixels & 255).astype(np.uint8)]
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in plane) for plane in planes]
    padded = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    return np.array([2, 64, 64 + len(padded[0]), *[0] * 13], "<u4").tobytes() + b"".join(padded)


CODINGS: dict[str, tuple[uid.UID, int, Callable[[Pixels], bytes]]] = {
    "JPEG Baseline": (uid.JPEGBaseline8Bit, 8, lambda a: imagecodecs.jpeg8_encode(a, level=95)),
    "JPEG Extended": (
        uid.JPEGExtended12Bit,
        12,
        lambda a: imagecodecs.jpeg8_encode(a, level=95, bitspersample=12),
    ),
    "JPEG Lossless": (
        uid.JPEGLosslessSV1,
        16,
        lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1, bitspersample=16),
    ),
    "JPEG-LS": (uid.JPEGLSLossless, 16, imagecodecs.jpegls_encode),
    "JPEG-LS Near": (uid.JPEGLSNearLossless, 16, lambda a: imagecodecs.jpegls_encode(a, level=2)),
    "JPEG 2000": (uid.JPEG2000Lossless, 16, jpeg_2000),
    "JPEG 2000 lossy": (
        uid.JPEG2000,
        16,
        lambda a: imagecodecs.jpeg2k_encode(a, codecformat="J2K", level=60),
    ),
    "HTJ2K": (uid.HTJ2KLossless, 16, lambda a: imagecodecs.htj2k_encode(a, reversible=True)),
    "JPEG XL": (JPEG_XL[0], 16, lambda a: imagecodecs.jpegxl_encode(a, lossless=True)),
    "RLE": (uid.RLELossless, 16, rle),
}


def dataset(frame: bytes, syntax: uid.UID, bits: int, shape: tuple[int, int]) -> Dataset:
    """The least that a decoder needs to know of one frame."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.Rows, made.Columns = shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    return made


def damaged(frame: bytes) -> dict[str, bytes]:
    """The frame as networks and disks leave it."""
    middle, tenth = len(frame) // 2, len(frame) // 10
    return {
        "cut": frame[: len(frame) * 3 // 10],
        "cut, with an end": frame[: len(frame) * 3 // 10] + b"\xff\xd9",
        "no end": frame[:-2],
        "hole": frame[:middle] + frame[middle + tenth :],
        "zeros": frame[:middle] + bytes(tenth) + frame[middle + tenth :],
    }


def plugins(syntax: uid.UID) -> list[str]:
    """medopt's first, then those that pydicom has."""
    return [PLUGIN, *(name for name in decoder_of(syntax).available_plugins if name != PLUGIN)]


def measure(name: str, pixels: Pixels, repeats: int) -> dict[str, dict[str, object]]:
    """For each decoder its median time in ms, whether its pixels are right, and which damage it refuses."""
    syntax, bits, encode = CODINGS[name]
    shown = np.minimum(pixels >> max(0, 15 - bits), 2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)
    frame = encode(shown)
    sound = dataset(frame, syntax, bits, shown.shape)
    works = {plugin: lambda data, plugin=plugin: decoder_of(syntax).as_array(data, decoding_plugin=plugin)[0]
             for plugin in plugins(syntax)}  # fmt: skip
    times: dict[str, list[float]] = {plugin: [] for plugin in works}
    results: dict[str, dict[str, object]] = {}
    for turn in range(repeats + 1):
        for plugin, work in works.items():
            started = time.perf_counter()
            try:
                found = work(sound)
            except Exception as error:
                results[plugin] = {"ms": None, "right": False, "error": type(error).__name__}
                continue
            if turn:
                times[plugin].append(1000 * (time.perf_counter() - started))
            off = int(np.abs(found.astype(np.int64) - shown).max())
            results[plugin] = {"ms": None, "right": off <= TOLERANCE.get(name, 0), "largest_difference": off}
    for plugin, values in times.items():
        if values:
            results[plugin]["ms"] = statistics.median(values)
            results[plugin]["refuses"] = [
                kind
                for kind, data in damaged(frame).items()
                if is_refused(works[plugin], dataset(data, syntax, bits, shown.shape))
            ]
    return results


def is_refused(work: Callable[[Dataset], object], data: Dataset) -> bool:
    """Whether a decoder raises something."""
    try:
        work(data)
    except Exception:
        return True
    return False


def show(results: dict[str, dict[str, dict[str, object]]]) -> None:
    """One row for each syntax and decoder."""
    table = Table(title="RG1_UNCR, 1955 x 1841, one frame", title_justify="left")
    for heading in ("syntax", "decoder", "ms", "pixels", "refuses"):
        table.add_column(heading)
    for name, decoders in results.items():
        for plugin, one in decoders.items():
            asked = f" ({', '.join(ORDER[CODINGS[name][0]])})" if plugin == PLUGIN else ""
            refuses = one.get("refuses") or []
            said = "all" if len(refuses) == 5 else ", ".join(refuses) or "nothing"
            ms = "fails" if one["ms"] is None else f"{one['ms']:.0f}"
            table.add_row(name, plugin + asked, ms, "right" if one["right"] else "wrong", said if one["ms"] else "")
    Console(width=140).print(table)


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    words = parser.parse_args()
    quiet_pydicom()
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    path = get_testdata_file("RG1_UNCR.dcm", download=False)
    if path is None:
        raise SystemExit("RG1_UNCR.dcm is not installed: pip install pydicom-data")
    pixels = dcmread(path).pixel_array
    results = {name: measure(name, pixels, words.repeats) for name in CODINGS}
    show(results)
    if words.json:
        print(json.dumps({"decoders": results, "machine": asdict(machine())}))


if __name__ == "__main__":
    main()

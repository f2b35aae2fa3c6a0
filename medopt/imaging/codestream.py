"""Whether a compressed frame is whole: damage that decoders fill in without a word is refused here.

Every frame ends in its end marker (PS3.5 8.2 and A.4, ITU-T T.81 B.2, T.800 A.4.4). Inside, a Huffman-coded scan must
hold exactly its pixels: a part that is missing or zeroed leaves too few or too many bits. Decoders do not say so, but
they show it. `probe` decodes the same frame with two different tails behind each scan and some rows more: where the
tails reach a pixel of the image, the scan is too short, and where they do not reach the first row below it, too long.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Decode = Callable[[bytes], NDArray[Any]]

_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a literal first byte: re then searches fast
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_EOI = 0xD9
_SEQUENTIAL, _PROGRESSIVE, _LOSSLESS = (0xC0, 0xC1), 0xC2, 0xC3
# They begin with different codes, so different pixels come out of them, unless these are clipped to black or white.
_TAILS = tuple(bytes([byte]) * 64 for byte in (0x00, 0xAA, 0x55, 0x80, 0x08, 0x7F, 0xC9))
_MAX_SIDE = 65_500  # libjpeg's
_FILLING = 16
_ZEROS = bytes(32)
_HOLE = 1024  # as many zero bytes in a row are no arithmetic-coded data


class DamagedStreamError(ValueError):
    """The compressed frame is incomplete or overwritten; no other decoder may be asked."""


@dataclass(frozen=True, slots=True)
class JpegStream:
    """A frame of ITU-T T.81: `sof` is the code of its frame header, `size` (rows, columns), `mcu` (rows, columns).

    `scans` are the (start, end) of the entropy-coded segments, `height_at` and `restart_at` where rows and restart
    interval are written.
    """

    data: bytes
    sof: int
    size: tuple[int, int]
    mcu: tuple[int, int]
    height_at: int
    restart: int
    restart_at: int
    scans: tuple[tuple[int, int], ...]

    @property
    def mcus(self) -> tuple[int, int]:
        """Number of (rows, columns) of MCUs, where all components are in one scan."""
        return -(-self.size[0] // self.mcu[0]), -(-self.size[1] // self.mcu[1])


def read_jpeg(data: bytes) -> JpegStream:
    """The structure of a JPEG frame, from SOI to EOI. Raises DamagedStreamError where it breaks off."""
    if data[:2] != b"\xff\xd8":
        raise DamagedStreamError("the frame does not begin with a JPEG start marker (SOI)")
    frame: tuple[int, tuple[int, int], tuple[int, int], int] | None = None
    restart, restart_at, scans = 0, 0, []
    for marker, start, end, following in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = _frame_header(marker, data, start)
        elif marker == 0xDD:
            (restart,), restart_at = struct.unpack_from(">H", data, start), start
        elif marker == 0xDA:
            scans.append((end, following))
    if frame is None or not scans:
        raise DamagedStreamError("the frame holds no image: a header or a scan is missing")
    stream = JpegStream(data, *frame, restart, restart_at, tuple(scans))
    _check_restarts(stream)
    return stream


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The marker segments up to EOI as (marker, start and end of the parameters, start of the next segment)."""
    at = 2
    try:
        while True:
            if data[at] != 0xFF:
                raise DamagedStreamError(f"there is no marker where one is expected (byte {at})")
            while data[at] == 0xFF:
                at += 1
            marker, at = data[at], at + 1
            if marker == _EOI:
                return
            if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
                continue
            end = at + struct.unpack_from(">H", data, at)[0]
            following = _scan_end(data, end) if marker == 0xDA else end
            yield marker, at + 2, end, following
            at = following
    except (IndexError, struct.error):
        raise DamagedStreamError("the frame breaks off: it has no end marker (EOI)") from None


def _frame_header(sof: int, data: bytes, start: int) -> tuple[int, tuple[int, int], tuple[int, int], int]:
    _, rows, columns, count = struct.unpack_from(">BHHB", data, start)
    factors = [data[start + 7 + 3 * component] for component in range(count)]
    across, down = max(factor >> 4 for factor in factors), max(factor & 15 for factor in factors)
    unit = 1 if sof == _LOSSLESS else 8
    return sof, (rows, columns), (unit, unit) if count == 1 else (unit * down, unit * across), start + 1


def _scan_end(data: bytes, start: int) -> int:
    found = _END_OF_SCAN.search(data, start)
    if found is None:
        raise DamagedStreamError("the frame breaks off: it has no end marker (EOI)")
    end = found.start()
    while end > start and data[end - 1] == 0xFF:  # bytes that fill up before a marker
        end -= 1
    return end


def _check_restarts(stream: JpegStream) -> None:
    """Restart markers count from 0 to 7 and stand where the interval says (T.81 E.1.4)."""
    whole = len(stream.scans) == 1 and stream.size[0] > 0
    for start, end in stream.scans:
        codes = [match.group()[1] - 0xD0 for match in _RESTART.finditer(stream.data, start, end)]
        expected = -(-stream.mcus[0] * stream.mcus[1] // stream.restart) - 1 if stream.restart and whole else len(codes)
        if codes != [index % 8 for index in range(expected)] or (codes and not stream.restart):
            raise DamagedStreamError("a part of the frame is missing: its restart markers are not complete")


def check_jpeg(data: bytes) -> None:
    """Raises DamagedStreamError where a grey or colour JPEG file is not whole."""
    import imagecodecs

    probe(read_jpeg(data), imagecodecs.jpeg8_decode)


def probe(stream: JpegStream, decode: Decode) -> NDArray[Any]:
    """Decode a frame (rows, columns[, samples]) and make sure that its scans hold all of it, and nothing more.

    `decode` returns the samples as they are coded. Raises DamagedStreamError, and what `decode` raises.
    """
    rows, extra = stream.size[0], stream.mcu[0] * max(2, -(-8 // stream.mcus[1]))
    below = -(-rows // stream.mcu[0]) * stream.mcu[0]
    smeared = stream.mcu[0] > 8  # chroma of the last row is interpolated with the row below it
    if not rows or below + extra > _MAX_SIDE or stream.sof not in (*_SEQUENTIAL, _PROGRESSIVE, _LOSSLESS):
        return decode(stream.data)
    if stream.restart:
        if len(stream.scans) == 1 and stream.sof != _PROGRESSIVE:
            for part in _restart_parts(stream):
                probe(part, decode)
        return decode(stream.data)
    if stream.sof in _SEQUENTIAL and _is_overwritten(stream, decode):
        raise DamagedStreamError("the frame is damaged: a part of it was overwritten with zeros")
    decoded = (decode(_lengthened(stream, below + extra, tail)) for tail in _TAILS)
    first, second = next(decoded), next(decoded)
    compared = rows - 2 if smeared else rows
    if not np.array_equal(first[:compared], second[:compared]):
        raise DamagedStreamError("a part of the frame is missing: its data end before its last pixel")
    wide = max(8, 2 * stream.mcu[1])  # more than a first pixel, as the bits that fill the last byte may pass for a code
    corner = (slice(below, below + (stream.mcu[0] if stream.size[1] >= wide else extra)), slice(wide))
    if not np.ptp(first[corner], axis=(0, 1)).any():  # of few codes, as in a flat image: all of the rows tell more
        corner = (slice(below, None), slice(None))
    others = chain([second], decoded)  # more than the second only where both are clipped
    is_same = stream.sof != _PROGRESSIVE and all(np.array_equal(first[corner], other[corner]) for other in others)
    if is_same and not _is_insensitive(stream, decode):
        return probe(_without_filling(stream), decode)
    return decode(stream.data) if smeared else first[:rows]


def _lengthened(stream: JpegStream, rows: int, tail: bytes) -> bytes:
    """The frame with so many rows, and `tail` behind the data of each scan."""
    parts, at = [stream.data[: stream.height_at], struct.pack(">H", rows)], stream.height_at + 2
    for _, end in stream.scans:
        parts += [stream.data[at:end], tail]
        at = end
    return b"".join([*parts, stream.data[at:]])


def _is_insensitive(stream: JpegStream, decode: Decode) -> bool:
    """Whether the codes are so few (a flat image) that any tail gives the same pixels, even as a scan of its own."""
    first, *others = (_alone(stream, decode, tail)[:1, :1] for tail in _TAILS)
    return all(np.array_equal(first, other) for other in others)


def _is_overwritten(stream: JpegStream, decode: Decode) -> bool:
    """Whether zeros in a row stand in a scan where they are no flat area."""
    if not any(stream.data.find(_ZEROS, start, end) >= 0 for start, end in stream.scans):
        return False
    return bool(np.ptp(_alone(stream, decode, _ZEROS)[:8, :8], axis=(0, 1)).any())


def _alone(stream: JpegStream, decode: Decode, data: bytes) -> NDArray[Any]:
    """The frame with `data` in place of its first scan, and without the others."""
    return decode(stream.data[: stream.scans[0][0]] + data + b"\xff\xd9")


def _without_filling(stream: JpegStream) -> JpegStream:
    """Without the zeros that some writers put before EOI. Raises DamagedStreamError where there are none, or many."""
    start, end = stream.scans[-1]
    kept = stream.data[start:end].rstrip(b"\0")
    if not 1 <= end - start - len(kept) <= _FILLING or kept.endswith(b"\xff"):
        raise DamagedStreamError("the frame is damaged: data are left behind its last pixel")
    return read_jpeg(stream.data[:start] + kept + stream.data[end:])


def _restart_parts(stream: JpegStream) -> Iterator[JpegStream]:
    """Each restart interval as a frame of its own: whole rows where it has them, else one row of MCUs."""
    (start, end), (rows, across) = stream.scans[0], stream.mcus
    edges = [match.span() for match in _RESTART.finditer(stream.data, start, end)]
    head = bytearray(stream.data[:start])
    head[stream.restart_at : stream.restart_at + 2] = b"\0\0"
    left = rows * across
    for begin, stop in zip([start, *(edge[1] for edge in edges)], [*(edge[0] for edge in edges), end], strict=True):
        count = min(stream.restart, left)
        left -= count
        grid = (count // across, across) if count % across == 0 else (1, count)
        size = (grid[0] * stream.mcu[0], grid[1] * stream.mcu[1])
        if max(size) > _MAX_SIDE or (stream.sof == _LOSSLESS and count % across):
            return
        struct.pack_into(">HH", head, stream.height_at, *size)
        yield read_jpeg(bytes(head) + stream.data[begin:stop] + b"\xff\xd9")


def check_j2k(data: bytes) -> None:
    """Walk the tile-parts of a JPEG 2000 codestream (T.800 A.4); raises DamagedStreamError where it breaks off."""
    if data[4:8] == b"jP  ":  # a JP2 file (T.800 I): the codestream is in its last box
        data = data[data.find(b"jp2c") + 4 :]
    if data[:4] != b"\xff\x4f\xff\x51":
        raise DamagedStreamError("it does not begin with a JPEG 2000 codestream (SOC and SIZ)")
    try:
        tiles, parts, at = _tile_count(data), set(), 2
        while (marker := struct.unpack_from(">H", data, at)[0]) != 0xFFD9:
            if marker != 0xFF90:  # the main header, up to the first tile-part (SOT)
                at += 2 + struct.unpack_from(">H", data, at + 2)[0]
                continue
            tile, length = struct.unpack_from(">HI", data, at + 4)
            parts.add(tile)
            at = at + length if length else data.rindex(b"\xff\xd9")
    except (struct.error, ValueError):
        raise DamagedStreamError("the frame breaks off: it has no end marker (EOC) where its parts end") from None
    if len(parts) != tiles:
        raise DamagedStreamError(f"the frame has {len(parts)} of its {tiles} tiles")
    if bytes(_HOLE) in data[:at]:
        raise DamagedStreamError(f"the frame is damaged: {_HOLE} bytes of it in a row are zero")


def _tile_count(data: bytes) -> int:
    """From the SIZ segment (T.800 A.5.1), which follows SOC."""
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, 8)
    if not width or not height:
        raise ValueError
    return -(-(right - left) // width) * -(-(bottom - top) // height)

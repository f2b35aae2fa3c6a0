"""Compressed frames: what is whole is read, by whichever decoder can; what is not is refused in every syntax."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from scans_made import image

from medopt.core.errors import DataError
from medopt.imaging import decoders, read_scan
from medopt.imaging.codestream import DamagedStreamError, check_j2k, probe, read_jpeg
from medopt.imaging.decoders import JPEG_XL, ORDER

GREY = (np.random.default_rng(0).normal(2000, 60, (96, 72)) + 10 * np.arange(72)).astype(np.uint16)
COLOUR = np.stack([GREY >> 4, GREY.T[:72].repeat(2, 0)[:96, :72] >> 4, 255 - (GREY >> 4)], -1).astype(np.uint8)


def rle(pixels: np.ndarray) -> bytes:
    parts = [b"".join(imagecodecs.packbits_encode(row.astype(np.uint8).tobytes()) for row in plane)
             for plane in (pixels >> 8, pixels & 255)]  # fmt: skip
    parts = [part + b"\0" * (len(part) % 2) for part in parts]
    return np.array([2, 64, 64 + len(parts[0]), *[0] * 13], "<u4").tobytes() + b"".join(parts)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


# name: transfer syntax, pixels, the encoder, largest difference
CODINGS: dict[str, tuple[uid.UID, np.ndarray, Callable[[np.ndarray], bytes], int]] = {
    "baseline": (uid.JPEGBaseline8Bit, (GREY >> 4).astype(np.uint8), jpeg, 9),
    "baseline, restarts": (
        uid.JPEGBaseline8Bit,
        (GREY >> 4).astype(np.uint8),
        lambda a: jpeg(a, restart_marker_blocks=5),
        9,
    ),
    "extended, 12 bits": (
        uid.JPEGExtended12Bit,
        GREY,
        lambda a: imagecodecs.jpeg8_encode(a, level=95, bitspersample=12),
        90,
    ),
    "lossless": (
        uid.JPEGLossless,
        GREY,
        lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=6, bitspersample=12),
        0,
    ),
    "lossless SV1": (
        uid.JPEGLosslessSV1,
        GREY,
        lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1, bitspersample=16),
        0,
    ),
    "JPEG-LS": (uid.JPEGLSLossless, GREY, imagecodecs.jpegls_encode, 0),
    "JPEG-LS near": (uid.JPEGLSNearLossless, GREY, lambda a: imagecodecs.jpegls_encode(a, level=2), 2),
    "JPEG 2000": (
        uid.JPEG2000Lossless,
        GREY,
        lambda a: imagecodecs.jpeg2k_encode(a, codecformat="J2K", reversible=True, level=0),
        0,
    ),
    "JPEG 2000 lossy": (
        uid.JPEG2000,
        GREY,
        lambda a: imagecodecs.jpeg2k_encode(a, codecformat="J2K", level=60),
        300,
    ),
    "HTJ2K": (uid.HTJ2KLossless, GREY, lambda a: imagecodecs.htj2k_encode(a, reversible=True), 0),
    "JPEG XL": (JPEG_XL[0], GREY, lambda a: imagecodecs.jpegxl_encode(a, lossless=True), 0),
    "RLE": (uid.RLELossless, GREY, rle, 0),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda s: s[: len(s) * 3 // 10],
    "cut, with an end marker": lambda s: s[: len(s) * 3 // 10] + b"\xff\xd9",
    "without its end marker": lambda s: s[:-2],
    "a hole": lambda s: s[: len(s) // 2] + s[len(s) * 3 // 4 :],
    "a hole of zeros": lambda s: s[: len(s) // 2] + bytes(len(s) // 4) + s[len(s) * 3 // 4 :],
}


def compressed(pixels: np.ndarray, frames: list[bytes], syntax: uid.UID, **elements: object) -> Dataset:
    bits = 8 if pixels.dtype == np.uint8 else 16
    dataset = image(pixels, BitsStored=bits, HighBit=bits - 1, **elements)
    dataset.file_meta.TransferSyntaxUID, dataset.PixelData = syntax, encapsulate(frames)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


def written(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", CODINGS)
def test_a_whole_frame_is_read_in_every_syntax(tmp_path: Path, name: str) -> None:
    syntax, pixels, encode, tolerance = CODINGS[name]
    found = read_scan(written(compressed(pixels, [encode(pixels)], syntax), tmp_path / "c.dcm"))
    assert np.abs(found.array[0] - pixels).max() <= tolerance


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", CODINGS)
def test_a_frame_that_is_not_whole_is_refused_in_every_syntax(tmp_path: Path, name: str, kind: str) -> None:
    syntax, pixels, encode, _ = CODINGS[name]
    frame = DAMAGE[kind](encode(pixels))
    if name.startswith("JPEG 2000") and kind == "a hole of zeros":
        frame = frame[: len(frame) // 2] + bytes(2000) + frame[len(frame) // 2 + 2000 :]  # fewer could be data
    if name == "RLE" and kind == "without its end marker":
        frame = frame[:-40]  # it has none; its last bytes count all the same
    with pytest.raises(DataError, match=r"c\.dcm: the pixels cannot be decoded"):
        read_scan(written(compressed(pixels, [frame], syntax), tmp_path / "c.dcm"))


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_colour_is_read_whole_and_refused_in_part(tmp_path: Path, subsampling: int, kind: str) -> None:
    frame = jpeg(COLOUR, subsampling=subsampling)
    elements = {"PhotometricInterpretation": "YBR_FULL_422", "Modality": "US"}
    path = written(compressed(COLOUR, [frame], uid.JPEGBaseline8Bit, **elements), tmp_path / "whole.dcm")
    expected = np.moveaxis(np.asarray(Image.open(io.BytesIO(frame))), -1, 0)
    assert np.abs(read_scan(path).array - expected).max() <= 2
    damaged = compressed(COLOUR, [DAMAGE[kind](frame)], uid.JPEGBaseline8Bit, **elements)
    with pytest.raises(DataError, match="cannot be decoded"):
        read_scan(written(damaged, tmp_path / "c.dcm"))


def test_one_damaged_frame_of_several_is_refused(tmp_path: Path) -> None:
    pixels = np.stack([GREY >> 4] * 3).astype(np.uint8)
    frames = [jpeg(frame) for frame in pixels]
    frames[1] = DAMAGE["a hole"](frames[1])
    poses = {"NumberOfFrames": 3, "Modality": "XA"}
    dataset = compressed(pixels, frames, uid.JPEGBaseline8Bit, **poses)
    with pytest.raises(DataError):
        read_scan(written(dataset, tmp_path / "c.dcm"))
    with pytest.raises(RuntimeError, match="a part of the frame is missing"):
        list(decoders.decoder_of(uid.JPEGBaseline8Bit).iter_array(dataset, decoding_plugin="medopt"))


FLAT = {"black": 0, "grey": 128, "white": 255, "dark": 77}


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 64), (77, 131)])
@pytest.mark.parametrize("value", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"restart_marker_rows": 1}, {"progressive": True}], ids=str
)
def test_a_flat_image_is_whole_in_every_form(size: tuple[int, int], value: int, options: dict[str, bool]) -> None:
    """Few codes and clipped values: the tails behind the scan hardly show."""
    frame = jpeg(np.full(size, value, np.uint8), **options)
    found = probe(read_jpeg(frame), imagecodecs.jpeg8_decode)
    assert np.array_equal(found, imagecodecs.jpeg8_decode(frame))
    for bits in (8, 12, 16):
        pixels = np.full(size, value, np.uint8 if bits == 8 else np.uint16)
        frame = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits)
        assert np.array_equal(probe(read_jpeg(frame), imagecodecs.jpeg8_decode), pixels)


@pytest.mark.parametrize("filling", [b"\0", b"\0" * 6, b"\xff", b"\xff\xff"])
def test_bytes_that_fill_up_before_or_behind_the_end_marker_are_no_damage(filling: bytes) -> None:
    frame = jpeg((GREY >> 4).astype(np.uint8))
    expected = imagecodecs.jpeg8_decode(frame)
    for padded in (frame[:-2] + filling + frame[-2:], frame + filling):
        assert np.array_equal(probe(read_jpeg(padded), imagecodecs.jpeg8_decode), expected)


def test_a_missing_restart_interval_is_refused() -> None:
    frame = jpeg((GREY >> 4).astype(np.uint8), restart_marker_rows=1)
    first, second = frame.index(b"\xff\xd2"), frame.index(b"\xff\xd3")
    with pytest.raises(DamagedStreamError, match="restart markers"):
        read_jpeg(frame[:first] + frame[second:])
    with pytest.raises(DamagedStreamError, match="a part of the frame is missing"):
        probe(read_jpeg(frame[: first + 2] + frame[second - 4 :]), imagecodecs.jpeg8_decode)


def test_a_jpeg_2000_without_one_of_its_tiles_is_refused() -> None:
    """Four tiles by the header, of which one is there."""
    frame = bytearray(CODINGS["JPEG 2000"][2](GREY))
    check_j2k(bytes(frame))
    struct.pack_into(">II", frame, 24, 36, 48)  # XTsiz, YTsiz
    with pytest.raises(DamagedStreamError, match="1 of its 4 tiles"):
        check_j2k(bytes(frame))


def test_a_12_bit_jpeg_that_other_decoders_refuse_is_read() -> None:
    path = get_testdata_file("JPEG-lossy.dcm")
    found = read_scan(path)
    with pytest.raises(RuntimeError):
        pixel_array(dcmread(path), decoding_plugin="pylibjpeg")
    assert found.array.shape == (1, 1024, 256) and 0 < found.array.mean() < found.array.max() < 4096


def test_lossy_values_above_the_stored_bits_are_clipped_and_do_not_wrap(tmp_path: Path) -> None:
    pixels = np.where(np.indices((64, 64)).sum(0) % 9 < 4, 1023, 0).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(pixels, level=60, bitspersample=12)
    assert imagecodecs.jpeg8_decode(frame).max() > 1023  # an overshoot at the edges
    dataset = compressed(pixels, [frame], uid.JPEGExtended12Bit, Modality="XA")
    dataset.BitsStored, dataset.HighBit = 10, 9
    found = read_scan(written(dataset, tmp_path / "c.dcm")).array[0]
    assert found.max() == 1023 and np.abs(found - pixels).max() < 600


@pytest.mark.parametrize("stored", [12, 16])
@pytest.mark.parametrize("name", ["lossless SV1", "JPEG-LS", "JPEG 2000"])
def test_signed_values_are_read(tmp_path: Path, name: str, stored: int) -> None:
    pixels = (GREY.astype(np.int32) - 2000).astype(np.int16)
    syntax, _, encode, _ = CODINGS[name]
    frame = encode(pixels if name == "JPEG 2000" else pixels.view(np.uint16))
    dataset = compressed(pixels, [frame], syntax)
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    assert np.array_equal(read_scan(written(dataset, tmp_path / "c.dcm")).array[0], pixels)


def test_the_next_decoder_is_asked_where_the_first_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bytes:
        raise RuntimeError("not supported")

    for name in ("baseline", "lossless SV1", "JPEG-LS", "JPEG 2000", "RLE"):
        syntax, pixels, encode, tolerance = CODINGS[name]
        first = next(iter(ORDER[syntax]))
        monkeypatch.setitem(ORDER, syntax, ORDER[syntax] | {first: fails})
        found = read_scan(written(compressed(pixels, [encode(pixels)], syntax), tmp_path / "c.dcm"))
        assert np.abs(found.array[0] - pixels).max() <= tolerance, name


def test_a_tolerant_decoder_is_not_asked_about_a_damaged_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    syntax, pixels, encode, _ = CODINGS["JPEG-LS"]
    asked: list[str] = []
    monkeypatch.setattr(decoders.pylibjpeg, "_decode_frame", lambda *_: asked.append("pylibjpeg") or b"")
    dataset = compressed(pixels, [DAMAGE["a hole"](encode(pixels))], syntax)
    with pytest.raises(RuntimeError, match="Invalid JPEG-LS stream"):
        decoders.decoder_of(syntax).as_array(dataset, decoding_plugin="medopt")
    assert not asked


@pytest.mark.parametrize("kind", list(DAMAGE)[1:])
def test_a_jpeg_file_that_is_not_whole_is_refused(tmp_path: Path, kind: str) -> None:
    for pixels in ((GREY >> 4).astype(np.uint8), COLOUR):
        (tmp_path / "a.jpg").write_bytes(jpeg(pixels))
        assert read_scan(tmp_path / "a.jpg").array.shape[1:] == pixels.shape[:2]
        (tmp_path / "a.jpg").write_bytes(DAMAGE[kind](jpeg(pixels)))
        with pytest.raises(DataError, match=r"a\.jpg is not readable"):
            read_scan(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.j2k", "a.jp2"])
def test_a_jpeg_2000_file_keeps_its_bits_and_sign_and_is_refused_in_part(tmp_path: Path, name: str) -> None:
    codec = "j2k" if name == "a.j2k" else "jp2"
    wide = np.stack([GREY * 15, GREY * 7, GREY], -1)
    signed = GREY.astype(np.int16) - 2000
    for pixels in (GREY, wide, signed):
        whole = imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat=codec)
        (tmp_path / name).write_bytes(whole)
        found = read_scan(tmp_path / name).array
        np.testing.assert_array_equal(np.moveaxis(found, 0, -1).squeeze(), pixels)
        middle = len(whole) // 2
        (tmp_path / name).write_bytes(whole[:middle] + bytes(3000) + whole[middle + 3000 :])
        with pytest.raises(DataError, match="is not readable"):
            read_scan(tmp_path / name)


def test_a_frame_that_is_a_jpeg_2000_file_is_looked_over_too() -> None:
    whole = imagecodecs.jpeg2k_encode(GREY, level=0, reversible=True, codecformat="jp2")
    check_j2k(whole)
    with pytest.raises(DamagedStreamError):
        check_j2k(whole[: len(whole) // 3] + bytes(3000) + whole[len(whole) // 3 + 3000 :])
    with pytest.raises(DamagedStreamError, match="does not begin"):
        check_j2k(b"no codestream at all")


def test_a_camera_s_jpeg_with_a_preview_is_refused_in_part(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200), np.uint8))
    picture.save(stream, "MPO", save_all=True, append_images=[picture.resize((40, 40))], quality=95)
    (tmp_path / "a.jpg").write_bytes(whole := stream.getvalue())
    assert read_scan(tmp_path / "a.jpg").array.shape == (1, 200, 200)
    (tmp_path / "a.jpg").write_bytes(whole[:5000] + bytes(4000) + whole[9000:])
    with pytest.raises(DataError, match=r"a\.jpg is not readable"):
        read_scan(tmp_path / "a.jpg")


def test_a_tiff_of_jpeg_parts_is_refused(tmp_path: Path) -> None:
    Image.fromarray((GREY >> 4).astype(np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(DataError, match="JPEG within TIFF"):
        read_scan(tmp_path / "a.tif")

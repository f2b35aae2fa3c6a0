from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scans_made import canonical_affine, letter_f, nifti, radiograph, saved

from medopt.core.errors import DataError
from medopt.imaging import read_scan

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)
COLOUR = np.stack([GREY, GREY + 100, GREY + 200], axis=-1)


def refusal(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_scan(path, **options)
    return str(caught.value)


def png(path, pixels, mode=None, **options):
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["i.png", "i.tif", "i.bmp", "no_suffix"])
def test_images_keep_their_rows_and_columns(tmp_path, name):
    grey = read_scan(png(tmp_path / name, GREY, format=None if "." in name else "PNG"))
    assert np.array_equal(grey.array, GREY[None]) and grey.spacing_mm == (1.0, 1.0)
    colour = read_scan(png(tmp_path / name, COLOUR, format=None if "." in name else "PNG"))
    assert np.array_equal(colour.array, COLOUR.transpose(2, 0, 1)) and colour.array.flags.c_contiguous


def test_jpeg(tmp_path):
    found = read_scan(png(tmp_path / "i.jpg", np.full((16, 24), 90, np.uint8), quality=95))
    assert found.array.shape == (1, 16, 24) and np.allclose(found.array, 90, atol=2)
    assert found.source["format"] == "JPEG"


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_tiff(tmp_path, dtype):
    pixels = GREY.astype(dtype) * 1000
    assert np.array_equal(read_scan(png(tmp_path / "i.tif", pixels)).array[0], pixels)


def test_16_bit_png(tmp_path):
    assert np.array_equal(read_scan(png(tmp_path / "i.png", GREY.astype(np.uint16) * 999)).array[0], GREY * 999.0)


def test_bits_and_palettes(tmp_path):
    black_white = Image.fromarray(GREY > 17)
    black_white.save(tmp_path / "b.png")
    assert np.array_equal(read_scan(tmp_path / "b.png").array[0], np.where(GREY > 17, 255, 0))
    found = read_scan(png(tmp_path / "p.png", COLOUR, mode="P"))
    assert found.array.shape == (3, 5, 7)


def test_the_camera_orientation_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right for display
    png(tmp_path / "i.png", GREY, exif=exif)
    assert np.array_equal(read_scan(tmp_path / "i.png").array[0], np.rot90(GREY, -1))


def test_transparency_is_refused_unless_nothing_is_transparent(tmp_path):
    opaque = np.dstack([COLOUR, np.full((5, 7), 255, np.uint8)])
    assert np.array_equal(read_scan(png(tmp_path / "a.png", opaque)).array, COLOUR.transpose(2, 0, 1))
    opaque[0, 0, 3] = 10
    assert "transparent" in refusal(png(tmp_path / "a.png", opaque))
    assert "transparent" in refusal(png(tmp_path / "k.png", COLOUR, transparency=tuple(COLOUR[0, 0].tolist())))


def test_other_colour_models_become_rgb(tmp_path):
    png(tmp_path / "c.tif", np.full((4, 4, 3), (255, 0, 0), np.uint8), mode="CMYK")
    assert np.array_equal(read_scan(tmp_path / "c.tif").array[:, 0, 0], (255, 0, 0))


def test_several_pages_are_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "p.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    assert "2 pages" in refusal(tmp_path / "p.tif")


@pytest.mark.parametrize("name", ["i.png", "i.jpg", "i.tif", "i.bmp"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_truncated_images_are_refused(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    content = png(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    assert name in refusal(tmp_path / name)


def test_an_image_of_absurd_size_is_refused(tmp_path):
    content = bytearray(png(tmp_path / "b.bmp", GREY).read_bytes())
    content[18:26] = np.array([60_000, 60_000], "<i4").tobytes()
    (tmp_path / "b.bmp").write_bytes(content)
    assert "b.bmp" in refusal(tmp_path / "b.bmp")


@pytest.fixture
def archive(tmp_path):
    numbers = np.random.default_rng(0)
    path = tmp_path / "set.npz"
    np.savez_compressed(
        path,
        grey=numbers.integers(0, 255, (6, 5, 7)).astype(np.uint8),
        colour=numbers.integers(0, 255, (4, 5, 7, 3)).astype(np.uint8),
        volumes=numbers.normal(size=(2, 4, 5, 6)).astype(np.float64),
        pickled=np.array([{"a": 1}], dtype=object),
        fortran=np.asfortranarray(numbers.normal(size=(3, 4, 5))),
        labels=np.arange(6),
        words=np.array([["a"]]),
    )
    return path


def test_members_of_an_archive(archive):
    arrays = np.load(archive)
    assert np.array_equal(read_scan(f"{archive}#grey/4").array, arrays["grey"][4][None])
    assert np.array_equal(read_scan(f"{archive}#colour/3").array, arrays["colour"][3].transpose(2, 0, 1))
    volume = read_scan(f"{archive}#volumes/1")
    assert np.array_equal(volume.array, arrays["volumes"][1][None].astype(np.float32)) and len(volume.spacing_mm) == 3
    assert read_scan("set.npz#grey", data=archive.parent).array.shape == (1, 6, 5, 7)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_member_is_what_numpy_reads(tmp_path, data):
    kinds = st.sampled_from(["u1", "<i2", ">u2", "<f4", ">f8", "?"])
    stack = data.draw(kinds.flatmap(lambda kind: arrays.arrays(kind, (3, 2, 4))))
    index = data.draw(st.integers(0, 2))
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(tmp_path / "a.npz", x=stack)
    with np.errstate(over="ignore"):
        expected = stack[index].astype(np.float32)
        assert np.array_equal(read_scan(f"{tmp_path / 'a.npz'}#x/{index}").array[0], expected, equal_nan=True)


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("gray/0", "it has grey, colour"),
        ("grey/6", "from 0 to 5"),
        ("grey/-1", "from 0 to 5"),
        ("grey/x", "from 0 to 5"),
        ("pickled/0", "objects"),
        ("fortran/0", "Fortran"),
        ("labels/0", "neither an image"),
        ("words", "neither an image"),
        ("volumes", "neither an image"),
    ],
)
def test_members_that_are_not_there_or_no_image_are_refused(archive, member, says):
    assert says in refusal(f"{archive}#{member}")


def test_an_array_that_is_shorter_than_its_header_says_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9, 5, 7)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(70))
    assert read_scan(f"{tmp_path / 'a.npz'}#x/1").array.shape == (1, 5, 7)
    assert "breaks off" in refusal(f"{tmp_path / 'a.npz'}#x/2")


def test_damaged_archives_are_refused(archive):
    assert "name one image of it" in refusal(archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refusal(f"{archive}#grey/0")
    assert "There is no file" in refusal(f"{archive.parent / 'other.npz'}#grey/0")


def test_the_format_is_told_from_the_content(tmp_path):
    path = saved(radiograph(GREY.astype(np.uint16)), tmp_path / "really_dicom.png")
    assert read_scan(path).modality == "DX"
    png(tmp_path / "really_png.dcm", GREY, format="PNG")
    assert read_scan(tmp_path / "really_png.dcm").source["format"] == "PNG"


def test_a_dicom_file_that_begins_like_a_tiff_is_dicom(tmp_path):
    dataset = radiograph(GREY.astype(np.uint16))
    dataset.preamble = b"II*\0" + b"\0" * 124
    assert read_scan(saved(dataset, tmp_path / "dual")).source["format"] == "DICOM"


def test_a_path_below_the_data_folder(tmp_path):
    nifti(tmp_path / "scan.nii.gz", letter_f(), canonical_affine())
    assert np.array_equal(read_scan("scan.nii.gz", data=tmp_path).array[0], letter_f())
    assert "There is no file" in refusal("scan.nii.gz", data=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "content", "says"), [("empty.dcm", b"", "0 bytes"), ("text.txt", b"hello", "not a format")]
)
def test_other_files_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)


def test_a_missing_file_is_refused_with_the_way_out(tmp_path):
    assert "MEDOPT_DATA" in refusal(tmp_path / "nowhere.dcm")
    assert "cannot be read" in refusal("x" * 5000)


def test_reading_leaves_no_state(tmp_path):
    path = png(tmp_path / "i.png", GREY)
    np.savez(tmp_path / "f.npz", x=np.zeros((2, 3, 4), np.float32))
    assert read_scan(f"{tmp_path / 'f.npz'}#x/1").array.flags.writeable
    first = read_scan(path)
    first.array[...] = -1
    assert np.array_equal(read_scan(path).array[0], GREY)


def test_importing_this_room_changes_nothing_outside_it():
    code = (
        "import logging, warnings, pydicom, pydicom.config as config\n"
        "logger = logging.getLogger('pydicom')\n"
        "state = lambda: (config.settings.reading_validation_mode, logger.level, warnings.filters[:])\n"
        "before = state()\n"
        "import medopt.imaging.scan, medopt.imaging.series_index, medopt.manifest.build, medopt.manifest.quality\n"
        "assert state() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


DEEP = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 20


def tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack"} | options)
    return read_scan(path).array


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_white_is_zero_is_inverted_at_every_depth(tmp_path, byteorder):
    for pixels in ((DEEP >> 8).astype(np.uint8), DEEP, DEEP.astype(np.uint32) << 8):
        expected = np.iinfo(pixels.dtype).max - pixels.astype(np.float64)
        found = tiff(tmp_path / "w.tif", pixels, photometric="miniswhite", byteorder=byteorder)
        assert np.array_equal(found[0], expected.astype(np.float32))
    signed = DEEP.astype(np.int16) - 500
    assert np.array_equal(tiff(tmp_path / "w.tif", signed, photometric="miniswhite")[0], -1.0 - signed)
    tifffile.imwrite(tmp_path / "f.tif", DEEP.astype(np.float32), photometric="miniswhite")
    assert "what is black is not defined" in refusal(tmp_path / "f.tif")


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "f2", "f4", "f8"])
def test_a_tiff_is_read_as_its_sample_format_says(tmp_path, kind):
    pixels = (DEEP / 100 - 100 * (kind[0] != "u")).clip(-100 * (kind[0] != "u"), 120).astype(kind)
    assert np.array_equal(tiff(tmp_path / "s.tif", pixels)[0], pixels.astype(np.float32))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_of_16_bits_keeps_them(tmp_path, planar):
    colour = np.stack([DEEP, DEEP + 1, DEEP + 2], -1)
    laid = np.moveaxis(colour, -1, 0) if planar == "separate" else colour
    found = tiff(tmp_path / "c.tif", laid, photometric="rgb", planarconfig=planar)
    assert np.array_equal(np.moveaxis(found, 0, -1), colour)
    opaque = np.full((64, 48, 1), 65535, np.uint16)
    for pixels in (colour, np.concatenate([colour, opaque], -1), np.concatenate([DEEP[..., None], opaque], -1)):
        (tmp_path / "c.png").write_bytes(imagecodecs.png_encode(pixels))
        expected = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
        assert np.array_equal(np.moveaxis(read_scan(tmp_path / "c.png").array, 0, -1), expected)
    opaque[3, 4] = 7
    (tmp_path / "c.png").write_bytes(imagecodecs.png_encode(np.concatenate([colour, opaque], -1)))
    assert "partly transparent" in refusal(tmp_path / "c.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_tiff_is_turned_as_a_shallow_one(tmp_path, orientation):
    tag = {"extratags": [(274, 3, 1, orientation, True)]}
    shallow = tiff(tmp_path / "8.tif", (DEEP >> 8).astype(np.uint8), **tag)
    assert np.array_equal(tiff(tmp_path / "16.tif", DEEP, **tag) // 256, shallow)


def test_a_deep_image_that_breaks_off_is_refused(tmp_path):
    colour = np.stack([DEEP, DEEP + 1, DEEP + 2], -1)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(colour)[:-400])
    tifffile.imwrite(tmp_path / "a.tif", DEEP, compression="zlib")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-100])
    for name in ("a.png", "a.tif"):
        assert "not readable as an image" in refusal(tmp_path / name)

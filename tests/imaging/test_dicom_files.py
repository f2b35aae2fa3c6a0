from __future__ import annotations

import random
from pathlib import Path

import data_store
import numpy as np
import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from real_data import real
from scans_made import canonical_affine, enhanced, image, letter_f, radiograph, saved

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging import read_scan

STORES = [Path(pydicom.data.__file__).parent / "test_files", Path(data_store.__file__).parent / "data"]


def outcome(path: Path) -> Volume | str:
    """The volume, or the refusal; anything else fails the test."""
    try:
        volume = read_scan(path)
    except DataError as error:
        return str(error)
    assert volume.array.dtype == np.float32 and volume.array.flags.c_contiguous
    assert volume.array.ndim in (3, 4) and len(volume.spacing_mm) == volume.spatial_dims
    assert volume.affine.shape == (4, 4) and min(volume.spacing_mm) > 0
    return volume


def outcomes(folder: Path) -> dict[str, Volume | str]:
    return {str(path.relative_to(folder)): outcome(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("store", "readable"), zip(STORES, (78, 50), strict=True), ids=["pydicom", "pydicom-data"])
def test_every_file_of_pydicom_is_read_or_refused_with_a_reason(store, readable):
    found = outcomes(store)
    refused = [reason for reason in found.values() if isinstance(reason, str)]
    assert len(found) - len(refused) >= readable
    assert not [reason for reason in refused if "not foreseen" in reason]


def test_every_shared_file_is_read_or_refused_with_a_reason():
    found = outcomes(real("dicom/highdicom"))
    assert isinstance(found["dx_image.dcm"], Volume)
    assert "segmentation" in found["seg_image_cr_binary.dcm"]
    assert "tiles" in found["sm_image.dcm"]
    assert "Comprehensive 3D SR" in found["sr_document.dcm"]


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_transfer_syntaxes_give_the_same_pixels(name):
    assert np.array_equal(
        outcome(get_testdata_file(name)).array[0], dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    )


@pytest.mark.parametrize("name", ["OBXXXX1A_expb.dcm", "OBXXXX1A_rle.dcm"])
def test_a_palette_is_the_same_in_every_transfer_syntax(name):
    assert np.array_equal(outcome(get_testdata_file(name)).array, outcome(get_testdata_file("OBXXXX1A.dcm")).array)


def test_a_signed_ct_is_in_hounsfield_units():
    path = get_testdata_file("CT_small.dcm")
    stored = dcmread(path)
    found = read_scan(path)
    assert np.array_equal(found.array[0], stored.pixel_array * 1.0 - 1024)
    assert found.modality == "CT" and found.spacing_mm == pytest.approx(stored.PixelSpacing)


def test_monochrome1_radiograph_is_bright_where_little_light_came_through():
    path = get_testdata_file("RG1_UNCR.dcm")
    stored = dcmread(path)
    assert np.array_equal(read_scan(path).array[0], 2**15 - 1 - stored.pixel_array.astype(np.float32))
    assert read_scan(path).source["spacing"].startswith("unknown")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MR_truncated.dcm", "cannot be decoded"),
        ("rtdose.dcm", "dose"),
        ("rtplan.dcm", "RT Plan"),
        ("test-SR.dcm", "Comprehensive SR"),
        ("liver_1frame.dcm", "segmentation"),
        ("emri_small_jpeg_2k_lossless_too_short.dcm", "truncated"),
        ("priv_SQ.dcm", "no pixel data"),
        ("waveform_ecg.dcm", "Waveform"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(name, says):
    assert says in outcome(get_testdata_file(name))


def test_a_dicomdir_is_refused():
    assert "DICOMDIR" in outcome(STORES[0] / "dicomdirtests" / "DICOMDIR")


def test_a_transfer_syntax_that_does_not_exist_is_refused(tmp_path):
    path = saved(image(np.zeros((4, 4), np.uint16)), tmp_path / "t.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"))
    assert "transfer syntax" in outcome(path)


def test_an_element_of_no_known_type_is_refused(tmp_path):
    path = saved(image(np.zeros((4, 4), np.uint16)), tmp_path / "t.dcm")
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00QQ"))
    assert "t.dcm: an element of the header" in outcome(path)


def test_a_siemens_mosaic_is_refused(tmp_path):
    dataset = image(np.zeros((8, 8), np.uint16), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    assert "mosaic" in outcome(saved(dataset, tmp_path / "m.dcm"))


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("Rows", 0),
        ("Rows", None),
        ("NumberOfFrames", "x"),
        ("SamplesPerPixel", 2),
        ("BitsAllocated", 7),
        ("PhotometricInterpretation", ""),
    ],
)
def test_headers_that_contradict_the_pixels_are_refused(tmp_path, element, value):
    dataset = image(np.zeros((4, 4), np.uint16))
    if value is None:
        delattr(dataset, element)
    else:
        dataset.add_new(element, "LO" if isinstance(value, str) else "US", value)
    dataset.save_as(tmp_path / "h.dcm", enforce_file_format=True)
    assert "h.dcm" in outcome(tmp_path / "h.dcm")


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm", "MR_small.dcm", "SC_rgb.dcm"])
@pytest.mark.parametrize("element", ["Rows", "Columns"])
def test_a_header_of_another_size_than_its_pixels_is_refused(tmp_path, name, element):
    dataset = dcmread(get_testdata_file(name))
    setattr(dataset, element, dataset[element].value // 2)
    dataset.save_as(tmp_path / "h.dcm")
    assert "cannot be decoded" in outcome(tmp_path / "h.dcm")


@pytest.mark.parametrize("values", [["1", "2"], ["x", "y", "z"], ["nan", "0", "0"]])
def test_a_position_that_is_none_leaves_an_image_unplaced(tmp_path, values):
    dataset = image(np.ones((4, 4), np.uint16), ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    dataset.add_new("ImagePositionPatient", "LO", values)
    dataset["ImagePositionPatient"].VR = "LO"
    found = outcome(saved(dataset, tmp_path / "p.dcm"))
    assert found.source["orientation"] == "unknown"


def test_a_file_without_the_prefix_is_still_dicom(tmp_path):
    path = saved(image(np.arange(16, dtype=np.uint16).reshape(4, 4)), tmp_path / "p.dcm")
    dataset = dcmread(path)
    del dataset.file_meta
    bare = tmp_path / "bare"
    dataset.save_as(bare, implicit_vr=True, little_endian=True)
    assert np.array_equal(outcome(bare).array[0], np.arange(16).reshape(4, 4))


def test_nothing_is_said_beside_the_refusal(tmp_path, capfd):
    dataset = radiograph(np.zeros((4, 4), np.uint16))
    path = saved(dataset, tmp_path / "w.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.826.0.1.1", b"1.2.826.00.A1")[:-8])
    assert "cannot be decoded" in outcome(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_RLE.dcm", "examples_palette.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm"],
)
def test_damaged_bytes_never_end_in_anything_but_a_volume_or_a_refusal(tmp_path, name, seed):
    content = bytearray(Path(get_testdata_file(name)).read_bytes())
    draw = random.Random(f"{name} {seed}")
    path = tmp_path / "fuzzed.dcm"
    for _ in range(8):
        damaged = content[:]
        for _ in range(draw.choice((1, 4, 30))):
            damaged[draw.randrange(132, min(len(damaged), 3000))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice((len(damaged), draw.randrange(200, len(damaged))))])
        found = outcome(path)
        assert isinstance(found, Volume) or "fuzzed.dcm" in found


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"]
)
def test_a_compressed_image_that_breaks_off_is_refused(tmp_path, name):
    content = Path(get_testdata_file(name)).read_bytes()
    (tmp_path / "t.dcm").write_bytes(content[: len(content) * 3 // 4])
    assert "truncated" in outcome(tmp_path / "t.dcm")


@pytest.mark.parametrize("cut", [0, 1, 100, 133, 300, 700, 900, -200, -1])
def test_truncation_anywhere_is_refused(tmp_path, cut):
    path = saved(enhanced(letter_f(), canonical_affine()), tmp_path / "t.dcm")
    path.write_bytes(path.read_bytes()[:cut])
    assert "t.dcm" in outcome(path) and isinstance(outcome(path), str)

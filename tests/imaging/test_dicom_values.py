from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import SecondaryCaptureImageStorage
from scans_made import canonical_affine, enhanced, image, letter_f, lookup, radiograph, saved

from medopt.core.errors import DataError
from medopt.imaging import read_scan
from medopt.imaging.dicom_values import read_palette

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4)


def read(tmp_path, dataset):
    return read_scan(saved(dataset, tmp_path / "one.dcm"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([8, 16, 32]),
    st.booleans(),
    st.integers(1, 32),
    st.sampled_from([1.0, 0.5, -2.0]),
    st.sampled_from([0.0, -1024.0]),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_every_bit_depth_sign_and_rescale(tmp_path, allocated, signed, stored, slope, intercept, photometric):
    stored = min(stored, allocated)
    low = -(2 ** (stored - 1)) if signed else 0
    high = low + 2**stored - 1
    values = np.linspace(low, high, 12).astype(np.int64).reshape(3, 4)
    dtype = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    dataset = image(values.astype(dtype), BitsStored=stored, PhotometricInterpretation=photometric)
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    shown = values if photometric == "MONOCHROME2" else low + high - values
    assert np.allclose(read(tmp_path, dataset).array[0], (shown * slope + intercept).astype(np.float32), rtol=1e-6)


def test_single_bits_are_read(tmp_path):
    bits = np.array([[1, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 0, 1]], np.uint8)
    dataset = image(bits, BitsAllocated=1, BitsStored=1)
    dataset.PixelData = np.packbits(bits, bitorder="little").tobytes()
    assert np.array_equal(read(tmp_path, dataset).array[0], bits)


@pytest.mark.parametrize("signed", [False, True])
def test_overlay_bits_above_the_stored_ones_are_cleared(tmp_path, signed):
    values = np.array([[0, 5, 2047], [1, 7, 9]], np.uint16)
    dataset = image(values | 0x8000 | 0x1000, BitsStored=12, PixelRepresentation=int(signed))
    assert np.array_equal(read(tmp_path, dataset).array[0], values)


def test_the_first_window_is_reported_and_not_applied(tmp_path):
    found = read(
        tmp_path, image(RAMP, WindowCenter=[40, 600], WindowWidth=[80, 2800], RescaleSlope=2, RescaleIntercept=-4)
    )
    assert found.window == (40.0, 80.0)
    assert np.array_equal(found.array[0], RAMP * 2.0 - 4)


@pytest.mark.parametrize("width", [0, -5, None])
def test_a_window_without_width_is_none(tmp_path, width):
    assert read(tmp_path, image(RAMP, WindowCenter=40, WindowWidth=width)).window is None


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "LINEAR"])
def test_the_window_of_a_mirrored_image_shows_the_mirrored_picture(tmp_path, function):
    """LINEAR runs from centre - 0.5 over width - 1 (PS3.3 C.11.2.1.2.1); mirrored, its ends are said exactly."""
    dataset = radiograph(
        RAMP * 300, BitsStored=12, WindowCenter=1200, WindowWidth=1000, RescaleSlope=2, RescaleIntercept=7
    )
    dataset.VOILUTFunction = function
    shown = apply_windowing(apply_modality_lut(RAMP * 300, dataset), dataset)
    expected = 1 - (shown - shown.min()) / (shown.max() - shown.min())
    dataset.PhotometricInterpretation = "MONOCHROME1"
    found = read(tmp_path, dataset)
    center, width = found.window
    assert found.window_function == "LINEAR_EXACT"
    windowed = np.clip((found.array[0] - (center - width / 2)) / width, 0, 1)
    assert np.allclose(windowed, expected, atol=1e-6)


def test_a_modality_table_replaces_the_rescale(tmp_path):
    dataset = image(RAMP, ModalityLUTSequence=lookup([10, 20, 40, 80], 2, 16), RescaleSlope=9, RescaleIntercept=9)
    expected = np.array([[10, 10, 10, 20], [40, 80, 80, 80], [80, 80, 80, 80]])
    assert np.array_equal(read(tmp_path, dataset).array[0], expected)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert np.array_equal(read(tmp_path, dataset).array[0], 65535 - expected)


def test_a_table_of_0_entries_has_65536(tmp_path):
    """PS3.3 C.11.1.1: the number does not fit into 16 bits."""
    pixels = np.array([[0, 1, 32768, 65535]], np.uint16)
    table = lookup((65535 - np.arange(65536)).tolist(), 0, 16)
    table[0].LUTDescriptor = [0, 0, 16]
    assert np.array_equal(read(tmp_path, image(pixels, ModalityLUTSequence=table)).array[0], 65535.0 - pixels)
    dataset = palette_image(16, 2)
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [0, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", np.arange(65536, dtype="<u2").tobytes())
    assert np.array_equal(read_palette(dataset, "p").entries[0, [255, 256, 65535]], (0, 1, 255))


def test_values_of_16_bits_are_rescaled_in_single_and_wider_ones_in_double_precision(tmp_path):
    """The same bits in every version: a release's probabilities follow from them."""
    slope, intercept, narrow = 0.1, 0.3, np.array([[1, 3, 7, 30001]], np.uint16)
    single = narrow.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    double = (narrow * slope + intercept).astype(np.float32)
    assert not np.array_equal(single, double)
    for pixels, expected in ((narrow, single), (narrow.astype(np.uint32), double)):
        found = read(tmp_path, image(pixels, RescaleSlope=slope, RescaleIntercept=intercept))
        assert np.array_equal(found.array[0], expected)


def test_a_modality_table_of_signed_values(tmp_path):
    values = np.array([[-3, -1], [0, 5]], np.int16)
    dataset = image(values, ModalityLUTSequence=lookup([1, 2, 3, 4], -2, 8))
    assert np.array_equal(read(tmp_path, dataset).array[0], [[1, 2], [3, 4]])


CURVE = [0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121]


@pytest.mark.parametrize(
    ("modality", "window", "applied"), [("DX", None, True), ("MG", None, True), ("CT", None, False), ("DX", 8, False)]
)
def test_a_voi_table_alone_is_applied_to_projections(tmp_path, modality, window, applied):
    dataset = radiograph(
        RAMP, Modality=modality, VOILUTSequence=lookup(CURVE, 0, 10), WindowCenter=window, WindowWidth=window
    )
    found = read(tmp_path, dataset)
    assert np.array_equal(found.array[0], RAMP**2 if applied else RAMP)
    assert found.window == ((512.0, 1024.0) if applied else (8.0, 8.0) if window else None)


def test_a_voi_table_is_mirrored_for_monochrome1(tmp_path):
    dataset = radiograph(RAMP, VOILUTSequence=lookup(CURVE, 0, 10), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(tmp_path, dataset).array[0], 1023 - RAMP.astype(int) ** 2)


def palette_image(bits: int, width: int, big_endian: bool = False) -> Dataset:
    dataset = image(RAMP.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    scale = 256 if bits == 16 else 1
    for name, first in (("Red", 10), ("Green", 60), ("Blue", 110)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [12, 0, bits])
        entries = (np.arange(first, first + 12) * scale).astype(f"{'>' if big_endian else '<'}u{width}")
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.tobytes())
    return dataset


@pytest.mark.parametrize(("bits", "width"), [(8, 1), (8, 2), (16, 2)])
def test_a_palette_becomes_rgb_from_0_to_255(tmp_path, bits, width):
    found = read(tmp_path, palette_image(bits, width)).array
    assert np.array_equal(found, np.stack([RAMP + 10, RAMP + 60, RAMP + 110]))


def test_a_palette_that_is_cut_off_is_refused(tmp_path):
    dataset = palette_image(16, 2)
    dataset.GreenPaletteColorLookupTableData = dataset.GreenPaletteColorLookupTableData[:4]
    with pytest.raises(DataError, match="palette"):
        read(tmp_path, dataset)


def test_a_palette_follows_the_byte_order_of_its_file():
    dataset = palette_image(16, 2, big_endian=True)
    dataset.set_original_encoding(False, False)
    assert np.array_equal(read_palette(dataset, "p").entries[:, 0], (10, 60, 110))
    dataset = palette_image(8, 1)
    dataset.set_original_encoding(False, False)
    with pytest.raises(DataError, match="big endian"):
        read_palette(dataset, "p")


def segmented(bits, *segments):
    dataset = image(RAMP.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    values = np.array([value for segment in segments for value in segment], f"<u{bits // 8}")
    for name in ("Red", "Green", "Blue"):
        length = sum(segment[1] for segment in segments)
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [length, 0, bits])
        setattr(dataset, f"Segmented{name}PaletteColorLookupTableData", values.tobytes())
    return dataset


def test_a_segmented_palette_is_unrolled():
    # PS3.3 C.7.9.2: two discrete values, then a line of four steps to 60
    entries = read_palette(segmented(8, (0, 2, 7, 20), (1, 4, 60)), "p").entries
    assert np.array_equal(entries[0], (7, 20, 30, 40, 50, 60))
    with pytest.raises(DataError, match="256"):
        read_palette(segmented(8, (0, 2, 7, 20), (1, 200, 60), (1, 200, 90)), "p")


def test_colour_keeps_rows_and_columns_and_comes_first(tmp_path):
    pixels = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    assert np.array_equal(read(tmp_path, image(pixels)).array, pixels.transpose(2, 0, 1))


def test_ybr_becomes_rgb(tmp_path):
    pixels = np.full((2, 4, 3), (128, 128, 128), np.uint8)
    pixels[0] = (76, 85, 255)  # red
    found = read(tmp_path, image(pixels, PhotometricInterpretation="YBR_FULL")).array
    assert np.allclose(found[:, 0, 0], (255, 0, 0), atol=2) and np.allclose(found[:, 1, 0], 128)


def test_16_bit_colour_is_brought_to_255(tmp_path):
    pixels = np.array([[[0, 32768, 65535]] * 2], np.uint16)
    dataset = image(
        np.zeros((1, 2), np.uint16), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    dataset.PixelData = pixels.tobytes()
    assert np.allclose(read(tmp_path, dataset).array[:, 0, 0], (0, 127.502, 255), atol=1e-3)


@pytest.mark.parametrize(
    ("element", "value", "says"),
    [
        ("RescaleSlope", 0, "RescaleSlope"),
        ("ModalityLUTSequence", lookup([1, 2], 0, 16)[:1], None),
        ("BitsStored", None, None),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path, element, value, says):
    dataset = image(RAMP, PhotometricInterpretation="MONOCHROME1")
    setattr(dataset, element, value)
    if element == "ModalityLUTSequence":
        value[0].LUTDescriptor = [5, 0, 16]
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=says or "one.dcm"):
        read_scan(tmp_path / "one.dcm")


def test_a_rescale_that_is_no_number_is_refused(tmp_path):
    dataset = image(RAMP)
    dataset.add_new("RescaleSlope", "LO", "steep")
    with pytest.raises(DataError, match="RescaleSlope is not a number"):
        read(tmp_path, dataset)


def test_floating_point_pixels(tmp_path):
    dataset = image(RAMP, BitsAllocated=32, RescaleSlope=2, RescaleIntercept=1)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData = (RAMP / 8).astype("<f4").tobytes()
    dataset.save_as(tmp_path / "f.dcm", enforce_file_format=True)
    assert np.allclose(read_scan(tmp_path / "f.dcm").array[0], RAMP / 4 + 1)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "f.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="floating-point"):
        read_scan(tmp_path / "f.dcm")


SPACINGS = [
    ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [9, 9]}, (0.2, 0.3), "PixelSpacing"),
    ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.4, 0.5]}, (0.4, 0.5), "detector"),
    ({"NominalScannedPixelSpacing": [0.1, 0.1]}, (0.1, 0.1), "film"),
    ({"PixelAspectRatio": [4, 3]}, (4 / 3, 1.0), "unknown"),
    ({}, (1.0, 1.0), "unknown"),
]


@pytest.mark.parametrize(("elements", "spacing", "note"), SPACINGS)
def test_the_spacing_of_a_projection_says_where_it_is_from(tmp_path, elements, spacing, note):
    found = read(tmp_path, radiograph(RAMP, **elements))
    assert found.spacing_mm == pytest.approx(spacing)
    assert note in found.source["spacing"]
    assert np.allclose(found.affine[:3, 1:3], [[0, spacing[1]], [spacing[0], 0], [0, 0]])


def test_the_spacing_of_ultrasound_comes_from_its_region(tmp_path):
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, -0.03
    found = read(tmp_path, image(RAMP, Modality="US", SequenceOfUltrasoundRegions=[region]))
    assert found.spacing_mm == pytest.approx((0.3, 0.2))


CT_POSE = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}


def ct_series(folder: Path, without: set[int], missing: tuple[str, ...] = ("RescaleSlope", "RescaleIntercept")) -> Path:
    for index in range(4):
        values = np.full((8, 8), 1064, np.int16)
        slice_ = image(
            values, RescaleSlope=1, RescaleIntercept=-1024, ImagePositionPatient=[0, 0, 3 * index], **CT_POSE
        )
        for keyword in missing if index in without else ():
            delattr(slice_, keyword)
        saved(slice_, folder / f"{index}.dcm")
    return folder


def test_a_ct_without_its_rescale_is_refused_alone_and_among_others(tmp_path):
    assert (read_scan(ct_series(tmp_path / "sound", set())).array == 40).all()
    for without in ({2}, {0, 1, 2, 3}):
        with pytest.raises(DataError, match=r"dcm: its header lacks RescaleSlope and RescaleIntercept"):
            read_scan(ct_series(tmp_path / f"{len(without)}", without))
    with pytest.raises(DataError, match="lacks RescaleIntercept"):
        read_scan(ct_series(tmp_path / "half", {1}, ("RescaleIntercept",)))
    with pytest.raises(DataError, match="lacks RescaleSlope"):
        read_scan(ct_series(tmp_path / "one", {1}, ("RescaleSlope",)) / "1.dcm")


def test_an_enhanced_ct_frame_without_its_rescale_is_refused(tmp_path):
    dataset = enhanced(letter_f(), canonical_affine())
    del dataset.RescaleSlope, dataset.RescaleIntercept
    assert read(tmp_path, dataset).array.shape[1] == 4
    del dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence
    with pytest.raises(DataError, match=r"frame 3: its header lacks RescaleSlope"):
        read(tmp_path, dataset)


@pytest.mark.parametrize(
    "elements",
    [{"Modality": "MR"}, {"Modality": "CT", "SOPClassUID": SecondaryCaptureImageStorage}, {"Modality": "DX"}],
)
def test_what_needs_no_rescale_is_read_without(tmp_path, elements):
    dataset = image(RAMP, **elements)
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        dataset.pop(keyword, None)
    assert np.array_equal(read(tmp_path, dataset).array[0], RAMP)
    dataset.RescaleIntercept = 5
    with pytest.raises(DataError, match="lacks RescaleSlope"):
        read(tmp_path, dataset)


def test_a_series_of_which_a_part_is_rescaled_is_refused(tmp_path):
    for index in range(4):
        rescale = {"RescaleSlope": 2, "RescaleIntercept": 0} if index == 3 else {}
        one = image(RAMP, Modality="MR", ImagePositionPatient=[0, 0, index], **CT_POSE, **rescale)
        saved(one, tmp_path / "s" / f"{index}.dcm")
    with pytest.raises(DataError, match=r"1 of 4 slices have rescaling, the others no rescaling.*3\.dcm"):
        read_scan(tmp_path / "s")


@pytest.mark.parametrize(
    "element", ["BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"]
)
def test_an_element_that_pixels_need_is_not_made_up(tmp_path, element):
    dataset = image(RAMP)
    delattr(dataset, element)
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"one\.dcm"):
        read_scan(tmp_path / "one.dcm")


def test_frames_that_number_of_frames_does_not_tell_of_are_refused(tmp_path):
    dataset = image(np.stack([RAMP] * 3))
    with pytest.raises(DataError, match="3 frames where NumberOfFrames"):
        read(tmp_path, dataset)


BORDER = np.random.default_rng(1).integers(500, 3500, (40, 40)).astype(np.uint16)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("painted", "elements"),
    [
        ((65535,), {"PixelPaddingValue": 65535}),
        ((0,), {"PixelPaddingValue": 0}),
        ((4000, 4050, 4095), {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}),
        ((4000, 4095), {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}),
    ],
)
def test_padding_is_background_and_black(tmp_path, photometric, painted, elements):
    pixels = BORDER.copy()
    for column, value in enumerate(painted):
        pixels[:, column] = value
    plain = read(tmp_path, radiograph(BORDER, PhotometricInterpretation=photometric)).array
    found = read(tmp_path, radiograph(pixels, PhotometricInterpretation=photometric, **elements))
    width = len(painted)
    assert found.background is not None
    assert found.background[:, :width].all() and not found.background[:, width:].any()
    assert np.array_equal(found.array[..., width:], plain[..., width:])
    assert (found.array[..., :width] == found.array[..., width:].min()).all()
    assert np.array_equal(np.sort(found.content.ravel()), np.sort(plain[..., width:].ravel()))


@pytest.mark.parametrize(("stored", "value"), [(-2000, -2000), (-2000, 63536)])
def test_padding_of_signed_pixels_may_be_written_as_unsigned(tmp_path, stored, value):
    pixels = (BORDER - 1024).astype(np.int16)
    pixels[:, :3] = stored
    dataset = image(pixels)
    dataset.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
    found = read(tmp_path, dataset)
    assert found.background[:, :3].all() and found.array.min() == pixels[:, 3:].min()


@pytest.mark.parametrize("value", [-2000, 63536, 2096])
def test_padding_of_12_signed_bits_may_be_written_with_12_or_16(tmp_path, value):
    pixels = (BORDER - 1024).clip(-1900, 2047).astype(np.int16)
    pixels[:, :3] = -2000
    dataset = image(pixels & 0x0FFF, BitsStored=12, HighBit=11, PixelRepresentation=1)
    dataset.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
    found = read(tmp_path, dataset)
    assert found.background[:, :3].all() and not found.background[:, 3:].any()
    assert found.array.min() == pixels[:, 3:].min()


def test_padding_in_slices_of_a_volume_is_marked_where_the_slices_lie(tmp_path):
    for index in range(3):
        pixels = (BORDER + 10 * index).astype(np.int16)
        pixels[:index] = -2000
        one = image(pixels, ImagePositionPatient=[0, 0, 3 * index], PixelPaddingValue=-2000, **CT_POSE)
        saved(one, tmp_path / "s" / f"{9 - index}.dcm")
    found = read_scan(tmp_path / "s")
    assert [int(slice_[:, 0].sum()) for slice_ in found.background] == [0, 1, 2]
    assert found.array.min() == BORDER.min() == found.array[0, 2, 0, 0]


def test_a_scan_of_padding_alone_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"one\.dcm: all of its pixels are padding"):
        read(tmp_path, radiograph(np.full((4, 4), 7, np.uint16), PixelPaddingValue=7))
    assert read(tmp_path, radiograph(BORDER, PixelPaddingValue=7)).background is None


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8])
def test_bits_above_the_lowest_are_shifted_down(tmp_path, dtype):
    stored, highest = (5, 6) if dtype == np.uint8 else (12, 15)
    low = -(2 ** (stored - 1)) if dtype == np.int16 else 0
    values = np.linspace(low, low + 2**stored - 1, 64).astype(np.int64).reshape(8, 8)
    dataset = image((values << (highest + 1 - stored)).astype(dtype), BitsStored=stored, HighBit=highest)
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert np.array_equal(read_scan(tmp_path / "one.dcm").array[0], values)
    dataset.PixelPaddingValue = int(values[0, 0])
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert np.array_equal(read_scan(tmp_path / "one.dcm").background, values == values[0, 0])


@pytest.mark.parametrize(("stored", "highest"), [(12, 7), (12, 16), (16, 11)])
def test_bits_that_contradict_each_other_are_refused(tmp_path, stored, highest):
    dataset = image(BORDER, BitsStored=stored, HighBit=highest)
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=rf"HighBit \(0028,0102\) is {highest}.*contradict"):
        read_scan(tmp_path / "one.dcm")


@pytest.mark.parametrize(
    ("function", "width", "usable"),
    [("LINEAR", 0.5, False), ("LINEAR_EXACT", 0.5, True), ("SIGMOID", 0.5, True), ("CUBIC", 80, False)],
)
def test_a_window_that_its_function_does_not_take_is_none(tmp_path, function, width, usable):
    found = read(tmp_path, image(RAMP, WindowCenter=40, WindowWidth=width, VOILUTFunction=function))
    assert found.window == ((40, width) if usable else None)
    assert found.window_function == (function if usable else "LINEAR")

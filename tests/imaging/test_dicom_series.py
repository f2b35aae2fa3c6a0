from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SegmentationStorage
from scans_made import (
    canonical_affine,
    enhanced,
    image,
    letter_f,
    nifti,
    radiograph,
    regridded,
    rotation,
    saved,
    series,
    slices,
)

from medopt.core.errors import DataError
from medopt.imaging import read_scan

OBLIQUE = rotation((1, 2, 0.5), 20)


def refusal(path) -> str:
    with pytest.raises(DataError) as caught:
        read_scan(path)
    message = str(caught.value)
    for secret in ("SECRET-17", "Jane", "1.2.826"):
        assert secret not in message
    return message


@pytest.mark.parametrize("turn", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)], ids=["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("flip", [(False, False, False), (True, False, True), (False, True, False)])
def test_the_letter_f_is_the_same_through_every_door(tmp_path, turn, order, flip):
    volume, affine = letter_f(), canonical_affine(turn=turn)
    grid, grid_affine = regridded(volume, affine, order, flip)
    read = [
        read_scan(series(tmp_path / "series", slices(grid, grid_affine))),
        read_scan(saved(enhanced(grid, grid_affine, 1.0, 0.0), tmp_path / "enhanced.dcm")),
        read_scan(nifti(tmp_path / "scan.nii.gz", grid, grid_affine)),
    ]
    frames = np.arange(len(grid), dtype=np.float32).reshape(-1, 1, 1) + np.zeros(grid.shape, np.float32)
    enhanced_offset, _ = regridded(frames, grid_affine, tuple(np.argsort(order)), (False,) * 3)
    enhanced_offset = np.flip(enhanced_offset, [axis for axis in range(3) if flip[order.index(axis)]])
    read[1].array[0] -= enhanced_offset  # each frame has its own intercept
    for found in read:
        assert np.array_equal(found.array[0], volume)
        assert found.array.dtype == np.float32 and found.array.flags.c_contiguous
        assert np.allclose(found.affine, affine, atol=1e-4)
        assert np.allclose(found.spacing_mm, (2.5, 0.75, 0.5), atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.floats(0.5, 8), st.tuples(*[st.floats(0.2, 2)] * 2), st.floats(-25, 25))
def test_order_and_spacing_come_from_positions_alone(tmp_path_factory, shuffle, step, inplane, degrees):
    volume = letter_f((6, 9, 7))
    affine = canonical_affine((step, *inplane), rotation((0.3, 1, 0.2), degrees))
    made = slices(volume, affine)
    for name, dataset in zip(shuffle, made, strict=True):
        dataset.InstanceNumber, dataset.SliceLocation = name, -name
    read = read_scan(series(tmp_path_factory.mktemp("series"), [made[index] for index in shuffle]))
    assert np.array_equal(read.array[0], volume)
    assert np.allclose(read.affine, affine, atol=1e-4)
    assert np.allclose(read.spacing_mm, (step, *inplane), atol=1e-4)


def test_a_gap_is_refused_with_its_files(tmp_path):
    made = slices(letter_f((6, 9, 7)), canonical_affine())
    del made[3]
    message = refusal(series(tmp_path / "s", made))
    assert "a gap" in message and "5.00 mm between" in message and "2.50 mm apart" in message


def test_a_second_slice_in_the_same_place_is_refused(tmp_path):
    made = slices(letter_f(), canonical_affine())
    assert "in the place of another" in refusal(series(tmp_path / "s", [*made, made[2]]))


def test_a_marked_scout_is_refused_by_name(tmp_path):
    made = slices(letter_f(), canonical_affine())
    made[2].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    folder = series(tmp_path / "s", made)
    name = next(path.name for path in folder.iterdir() if "LOCALIZER" in dcmread(path).get("ImageType", []))
    message = refusal(folder)
    assert "scout" in message and name in message


def test_an_unmarked_scout_far_away_is_refused(tmp_path):
    made = slices(letter_f(), canonical_affine())
    scout = slices(letter_f(), canonical_affine())[0]
    scout.ImagePositionPatient = ["-30", "12.5", "296"]
    assert "scout" in refusal(series(tmp_path / "s", [*made, scout]))


def test_a_scout_in_another_direction_is_refused(tmp_path):
    made = slices(letter_f(), canonical_affine())
    made[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert "mixed orientation" in refusal(series(tmp_path / "s", made))


@pytest.mark.parametrize(
    ("element", "value", "says"),
    [
        ("PixelSpacing", [0.8, 0.5], "mixed pixel spacing"),
        ("FrameOfReferenceUID", "1.2.826.0.1.9", "frame of reference"),
        ("PatientID", "SECRET-18", "differ in patient"),
        ("PhotometricInterpretation", "MONOCHROME1", "grey scale"),
        ("ImagePositionPatient", None, "no usable ImagePositionPatient"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "no usable ImagePositionPatient"),
        ("ImagePositionPatient", ["-30", "12.5", "107"], "uneven"),
        ("ImagePositionPatient", ["-29", "12.5", "106"], "sideways"),
    ],
)
def test_one_slice_that_differs_is_refused(tmp_path, element, value, says):
    made = slices(letter_f(), canonical_affine())
    setattr(made[2], element, value)
    assert says in refusal(series(tmp_path / "s", made))


def test_mixed_sizes_are_refused(tmp_path):
    made = slices(letter_f(), canonical_affine()) + slices(letter_f((4, 8, 7)), canonical_affine())[:1]
    message = refusal(series(tmp_path / "s", made))
    assert "mixed size" in message and "8\\7" in message


def test_a_series_without_pixel_spacing_has_no_scale(tmp_path):
    made = slices(letter_f(), canonical_affine(), PixelSpacing=None, ImagerPixelSpacing=[0.5, 0.5])
    assert "PixelSpacing" in refusal(series(tmp_path / "s", made))


def test_rounded_positions_are_within_tolerance(tmp_path):
    made = slices(letter_f((6, 9, 7)), canonical_affine((0.625, 0.75, 0.5)))
    for dataset in made:
        dataset.ImagePositionPatient = [round(float(value), 1) for value in dataset.ImagePositionPatient]
    read = read_scan(series(tmp_path / "s", made))
    assert read.spacing_mm[0] == pytest.approx(0.62, abs=0.01)


def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path):
    volume, affine = letter_f(), canonical_affine()
    affine[:3, 0] = (0.0, 2.5 * np.tan(np.radians(15)), 2.5)
    read = read_scan(series(tmp_path / "s", slices(volume, affine)))
    assert np.array_equal(read.array[0], volume)
    assert np.allclose(read.affine, affine, atol=1e-6)
    assert read.source["tilt_degrees"] == "15.00"
    assert "tilt_degrees" not in read_scan(series(tmp_path / "straight", slices(volume, canonical_affine()))).source


def test_slices_that_slide_almost_sideways_are_refused(tmp_path):
    affine = canonical_affine()
    affine[:3, 0] = (0.0, 20.0, 2.5)
    assert "no gantry tilts that far" in refusal(series(tmp_path / "s", slices(letter_f(), affine)))


def test_several_series_are_listed_without_their_uids(tmp_path):
    first = slices(letter_f(), canonical_affine(), SeriesNumber=3, SeriesDescription="T1 post")
    other = slices(letter_f()[:2], canonical_affine(), SeriesNumber=4, SeriesInstanceUID="1.2.826.0.1.3")
    message = refusal(series(tmp_path / "s", first + other))
    assert (
        "2 series" in message and "'T1 post' (4 files)" in message and "number 4" in message and "(2 files)" in message
    )


def test_reports_and_notes_beside_a_series_do_not_disturb_it(tmp_path):
    folder = series(tmp_path / "s", slices(letter_f(), canonical_affine()))
    report = image(np.zeros((2, 2), np.uint8), ComprehensiveSRStorage)
    saved(report, folder / "report")
    saved(image(np.zeros((2, 2), np.uint8), SegmentationStorage, SeriesInstanceUID="1.2.826.0.1.4"), folder / "seg")
    broken_report = dcmread(folder / "report")
    for keyword in ("PixelData", "Rows", "Columns"):
        del broken_report[keyword]
    saved(broken_report, folder / "report")
    for name in ("LICENSE", "notes.txt", ".DS_Store", "DICOMDIR"):
        (folder / name).write_bytes(b"")
    assert np.array_equal(read_scan(folder).array[0], letter_f())


@pytest.mark.parametrize(("name", "content"), [("I500", b""), ("I501.dcm", b"cut off"), ("photo.jpg", b"\xff\xd8\xff")])
def test_a_file_that_is_no_dicom_among_the_slices_is_refused(tmp_path, name, content):
    folder = series(tmp_path / "s", slices(letter_f(), canonical_affine()))
    (folder / name).write_bytes(content)
    assert name in refusal(folder)


def test_a_slice_without_pixels_is_refused_by_name(tmp_path):
    made = slices(letter_f(), canonical_affine())
    del made[1].PixelData
    assert "no pixel data" in refusal(series(tmp_path / "s", made))


def test_a_truncated_slice_is_refused_by_name(tmp_path):
    folder = series(tmp_path / "s", slices(letter_f(), canonical_affine()))
    last = max(folder.iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    assert last.name in refusal(folder)


def test_a_frames_own_values_go_before_the_files(tmp_path):
    dataset = enhanced(letter_f(), canonical_affine(), slope=2.0, intercept=5.0)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.WindowCenter, dataset.WindowWidth = 9, 9, 9, 9
    found = read_scan(saved(dataset, tmp_path / "e.dcm"))
    assert np.array_equal(found.array[0, 3], letter_f()[3] * 2 + 8)
    assert found.window == (42.0, 400.0)


def test_a_folder_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("medopt.imaging.dicom_series.MAX_FILES", 3)
    assert "more than 3" in refusal(series(tmp_path / "s", slices(letter_f(), canonical_affine())))


def test_functional_groups_that_cannot_be_read_are_refused(tmp_path):
    dataset = enhanced(letter_f(), canonical_affine())
    dataset.add_new("PerFrameFunctionalGroupsSequence", "LO", ["a", "b", "c", "d"])
    assert "an element of the header" in refusal(saved(dataset, tmp_path / "e.dcm"))


def test_folders_without_images_are_refused(tmp_path):
    assert "holds no DICOM image" in refusal(tmp_path)
    saved(image(np.zeros((2, 2), np.uint8), SegmentationStorage), tmp_path / "seg.dcm")
    assert "segmentation" in refusal(tmp_path)


def test_two_radiographs_are_no_volume(tmp_path):
    views = [radiograph(np.full((5, 4), value, np.uint16)) for value in (1, 2)]
    assert "not slices of one volume" in refusal(series(tmp_path / "s", views))


def test_a_folder_of_one_slice_is_an_image(tmp_path):
    made = slices(letter_f(), canonical_affine(), SliceThickness=4)[:1]
    read = read_scan(series(tmp_path / "s", made))
    assert read.array.shape == (1, 9, 7) and read.spacing_mm == (0.75, 0.5)
    assert np.allclose(read.affine[:3, 0], (0, 0, 4))


def test_a_cine_loop_is_refused(tmp_path):
    loop = image(np.zeros((5, 6, 7), np.uint8), NumberOfFrames=5, Modality="US")
    message = refusal(saved(loop, tmp_path / "loop.dcm"))
    assert "5 frames" in message and "which is meant is not said" in message


def test_time_points_in_an_enhanced_object_are_refused(tmp_path):
    volume, affine = letter_f(), canonical_affine()
    dataset = enhanced(np.concatenate([volume, volume]), affine)
    for index, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        z = float(affine[2, 3]) + 2.5 * (index % 4)
        item.PlanePositionSequence[0].ImagePositionPatient = [-30, 12.5, z]
    assert "time points" in refusal(saved(dataset, tmp_path / "e.dcm"))


def test_rescale_is_applied_slice_by_slice(tmp_path):
    made = slices(letter_f(), canonical_affine())
    for k, dataset in enumerate(made):
        dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -k
    read = read_scan(series(tmp_path / "s", made))
    factor = np.arange(1, 5).reshape(-1, 1, 1)
    assert np.array_equal(read.array[0], letter_f() * factor - (factor - 1))


def test_the_window_of_a_series_is_its_middle_slices(tmp_path):
    made = slices(letter_f(), canonical_affine())
    for k, dataset in enumerate(made):
        dataset.WindowCenter, dataset.WindowWidth = 100 * k, 50
    assert read_scan(series(tmp_path / "s", made)).window == (200.0, 50.0)


def test_monochrome1_series_is_mirrored(tmp_path):
    made = slices(
        letter_f().astype(np.uint16), canonical_affine(), PhotometricInterpretation="MONOCHROME1", BitsStored=12
    )
    assert np.array_equal(read_scan(series(tmp_path / "s", made)).array[0], 4095 - letter_f())


def test_a_multi_frame_object_with_too_few_frames_is_refused(tmp_path):
    dataset = enhanced(letter_f(), canonical_affine())
    dataset.PixelData = dataset.PixelData[: -9 * 7 * 2]
    assert "cannot be decoded" in refusal(saved(dataset, tmp_path / "e.dcm"))
    dataset.NumberOfFrames = -3
    assert "NumberOfFrames" in refusal(saved(dataset, tmp_path / "e.dcm"))


def test_source_identifies_no_one(tmp_path):
    made = slices(letter_f(), canonical_affine(), Manufacturer="ACME", ManufacturerModelName="One")
    source = read_scan(series(tmp_path / "s", made)).source
    assert source["manufacturer"] == "ACME" and source["transfer_syntax"] == "Explicit VR Little Endian"
    assert len(source["series"]) == 16 and source["series"] != source["study"]
    assert not any(secret in str(source) for secret in ("SECRET", "Doe", "1.2.826"))

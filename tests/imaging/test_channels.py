"""Several images of a case on the grid of the first."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medopt.config import Prepare
from medopt.core.errors import DataError
from medopt.imaging import read_scan
from medopt.imaging.channels import read_channels, split_channels
from medopt.imaging.series_index import index_folder
from medopt.transforms.prepare import PrepareChain
from medopt.transforms.restore import restore_masks
from tests.imaging.scans_made import image as made_dicom
from tests.imaging.scans_made import saved
from tests.scans_of_patients import mr_series

NAMES = ("t1", "t2", "adc")


def nifti(path: Path, shape: tuple[int, ...], affine: np.ndarray, scale: float = 1.0) -> Path:
    """A linear ramp in millimetres along each axis: interpolation gives it back exactly."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    nibabel.save(nibabel.Nifti1Image((scale * (world @ [1.0, 2.0, 3.0] + 500)).astype(np.float32), affine), path)
    return path


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(
        nifti(tmp_path / f"{n}.nii.gz", (20, 18, 12), np.diag([1, 1, 2, 1.0]), k) for k, n in enumerate(NAMES, 1)
    )


def test_images_of_one_grid_are_stacked_as_they_are_read_alone(case: tuple[Path, ...]) -> None:
    volume = read_channels(case, NAMES)
    assert volume.array.shape == (3, 12, 18, 20) and volume.spacing_mm == (2, 1, 1)
    for at, path in enumerate(case):
        assert np.array_equal(volume.array[at], read_scan(path).array[0])
    assert [one is not None for one in split_channels(volume, 3)] == [True] * 3


def moved(**changes: float) -> np.ndarray:
    affine = np.diag([1, 1, 2, 1.0])
    affine[0, 3] += changes.get("shift", 0)
    affine[:3, 0] *= changes.get("spacing", 1)
    angle = changes.get("turn", 0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize(
    ("shape", "changes", "reason"),
    [
        ((20, 18, 12), {"shift": 0.3}, "different grids"),
        ((20, 18, 12), {"spacing": 1.02}, "different grids"),
        ((20, 18, 11), {}, "different grids: 11 x 18 x 20 of 2 x 1 x 1 mm and 12 x 18 x 20"),
        ((20, 18, 12), {"turn": 0.1}, "different orientations"),
    ],
)
def test_other_grids_are_refused(
    case: tuple[Path, ...], tmp_path: Path, shape: tuple[int, ...], changes: dict[str, float], reason: str
) -> None:
    other = nifti(tmp_path / "other.nii.gz", shape, moved(**changes))
    with pytest.raises(DataError, match=f"other.nii.gz \\(t2\\) and t1.*{reason}"):
        read_channels((case[0], other, case[2]), NAMES)


def test_a_twentieth_of_a_voxel_is_the_same_grid_and_another_orientation_is_never(
    case: tuple[Path, ...], tmp_path: Path
) -> None:
    near = nifti(tmp_path / "near.nii.gz", (20, 18, 12), moved(shift=0.05))
    assert np.array_equal(read_channels((case[0], near, case[2]), NAMES).array[1], read_scan(near).array[0])
    turned = nifti(tmp_path / "turned.nii.gz", (20, 18, 12), moved(turn=0.1))
    with pytest.raises(DataError, match="different orientations"):
        read_channels((case[0], turned, case[2]), NAMES, resample=True)


def test_another_spacing_and_extent_come_onto_the_firsts_grid_on_request(
    case: tuple[Path, ...], tmp_path: Path
) -> None:
    fine = np.diag([0.5, 0.5, 1, 1.0])
    fine[:3, 3] = [-3, -3, -4]
    other = nifti(tmp_path / "fine.nii.gz", (60, 54, 24), fine)
    volume = read_channels((case[0], other, case[2]), NAMES, resample=True)
    part = volume.channels[1]
    assert part is not None and part.background is not None and part.spacing_mm == (2, 1, 1)
    covered = ~part.background
    assert 0.5 < covered.mean() < 1
    assert covered[:9].all() and not covered[11].any()  # the other ends 18 mm above the first's lowest slice
    inside = covered.copy()
    inside[9:] = inside[:, :, :2] = inside[:, :2] = inside[:1] = inside[:, :, -2:] = inside[:, -2:] = False
    assert np.allclose(part.array[0][inside], volume.array[0][inside], atol=0.75)  # a ramp stays a ramp
    far = nifti(tmp_path / "far.nii.gz", (20, 18, 12), moved(shift=15))
    with pytest.raises(DataError, match="covers 25% of the grid"):
        read_channels((case[0], far, case[2]), NAMES, resample=True)


def test_pictures_of_other_sizes_and_colours(tmp_path: Path) -> None:
    Image.new("L", (8, 6), 50).save(tmp_path / "a.png")
    Image.new("RGB", (8, 6), (50, 50, 50)).save(tmp_path / "b.png")
    Image.new("L", (8, 7), 50).save(tmp_path / "c.png")
    volume = read_channels((tmp_path / "a.png", tmp_path / "b.png"), ("cc", "mlo"))
    assert volume.array.shape == (2, 6, 8) and np.allclose(volume.array, 50)
    for resample in (False, True):  # nothing says which of the pixels show the same place
        with pytest.raises(DataError, match=r"different grids: 7 x 8 .* Neither says where it lies in the patient"):
            read_channels((tmp_path / "a.png", tmp_path / "c.png"), ("cc", "mlo"), resample=resample)
    with pytest.raises(DataError, match=r"a.png is given as cc and as mlo"):
        read_channels((tmp_path / "a.png", tmp_path / "a.png"), ("cc", "mlo"))


def test_an_image_without_a_place_is_never_resampled(tmp_path: Path) -> None:
    def ct(name: str, **elements: object) -> Path:
        pixels = np.arange(36, dtype=np.uint16).reshape(6, 6)
        return saved(made_dicom(pixels, PixelSpacing=[1, 1], **elements), tmp_path / name)

    here = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SliceThickness": 2}
    first = ct("first.dcm", ImagePositionPatient=[0, 0, 0], **here)
    beside = ct("beside.dcm", ImagePositionPatient=[1, 0, 0.1], **here)
    assert read_channels((first, beside), ("a", "b"), resample=True).array.shape == (2, 6, 6)
    above = ct("above.dcm", ImagePositionPatient=[1, 0, 3], **here)
    with pytest.raises(DataError, match=r"different slices, 1\.5 slice thicknesses apart"):
        read_channels((first, above), ("a", "b"), resample=True)
    with pytest.raises(DataError, match="only one of them says where it lies in the patient"):
        read_channels((first, ct("nowhere.dcm")), ("a", "b"), resample=True)


def test_the_images_of_a_case_are_held_once(case: tuple[Path, ...]) -> None:
    volume = read_channels((case[0], "", case[2]), NAMES)
    parts = [part for part in volume.channels if part is not None]
    assert len(parts) == 2 and all(np.shares_memory(part.array, volume.array) for part in parts)
    assert volume.array[1].max() == 0 and np.array_equal(volume.array[2], read_scan(case[2]).array[0])


def test_the_chain_scales_each_image_by_itself_and_stacks_them_in_order(case: tuple[Path, ...]) -> None:
    size = {"size": [12, 16, 16], "fit": "crop_or_pad"}
    chain = PrepareChain(Prepare.model_validate(size | {"channels": list(NAMES)}))
    tensor = chain(case)
    assert tensor.shape == (3, 12, 16, 16)
    for at, path in enumerate(case):
        assert np.array_equal(tensor[at], PrepareChain(Prepare.model_validate(size))(path)[0])
    assert np.array_equal(chain(read_channels(case, NAMES)), tensor)
    assert np.array_equal(chain(case[::-1]), tensor.flip(0))
    other = PrepareChain(Prepare.model_validate(size | {"channels": ["t2", "t1", "adc"]}))
    assert other.fingerprint != chain.fingerprint
    with pytest.raises(DataError, match="is one image, and a case of this study has 3: t1, t2, adc"):
        chain(case[0])
    with pytest.raises(DataError, match="has 2 images, and this study takes 3"):
        chain(case[:2])


def test_a_missing_image_is_refused_or_becomes_zeros_with_a_mask(case: tuple[Path, ...]) -> None:
    config = {"size": [12, 16, 16], "channels": list(NAMES)}
    missing = (case[0], "", case[2])
    with pytest.raises(DataError, match=r"t1.nii.gz: The image t2 is missing"):
        PrepareChain(Prepare.model_validate(config))(missing)
    prepare = Prepare.model_validate(config | {"missing_channel": "zeros"})
    tensor = PrepareChain(prepare)(missing)
    assert tensor.shape == (prepare.input_channels, 12, 16, 16) == (6, 12, 16, 16)
    assert tensor[1].abs().max() == 0 and tensor[0].max() > 0.99
    assert [float(mask.unique()) for mask in tensor[3:]] == [1, 0, 1]
    changed = restore_masks(prepare, tensor, (tensor + 0.25).clamp(0, 1))
    assert np.array_equal(changed[3:], tensor[3:]) and changed[1].abs().max() == 0 and changed[0].min() == 0.25
    with pytest.raises(DataError, match="none of its images"):
        PrepareChain(prepare)(("", "", ""))


def test_settings_of_single_images_keep_their_fingerprint() -> None:
    assert PrepareChain(Prepare(size=[96, 96])).fingerprint[:16] == "06b58ec76f3bb2ed"
    for wrong in ({"channels": ["a", "A"]}, {"channels": ["a"]}, {"channels": 2}, {"missing_channel": "zeros"}):
        with pytest.raises(ValueError):
            Prepare.model_validate({"size": [32, 32]} | wrong)


def sequences(folder: Path, second: dict[str, str] | None = None, patient: str = "H1") -> tuple[Path, Path]:
    """T1 and T2 of one study as folders of DICOM files, in one frame of reference unless `second` says otherwise."""
    mr_series(folder / "t1", "H1", "1.2.3", "t1", slices=5)
    mr_series(folder / "t2", patient, "1.2.3", "t2", slices=5, scale=3, **(second or {}))
    return folder / "t1", folder / "t2"


def chain_of(**prepare: object) -> PrepareChain:
    config = {"size": [8, 8, 8], "channels": ["t1", "t2"], "fit": "crop_or_pad"}
    return PrepareChain(Prepare.model_validate(config | prepare))


def test_folders_of_dicom_files_are_images_of_a_case(tmp_path: Path) -> None:
    case = sequences(tmp_path)
    volume = read_channels(case, ("t1", "t2"))
    assert volume.array.shape == (2, 5, 4, 4) and np.array_equal(volume.array[1], 3 * volume.array[0])
    assert chain_of()(case).shape == (2, 8, 8, 8)
    by_uid = [f"{tmp_path}#{series.uid}" for series in index_folder(tmp_path).series]
    assert np.array_equal(read_channels(sorted(by_uid), ("a", "b")).array.max(0), volume.array.max(0))


def test_another_frame_of_reference_is_refused_unless_images_were_registered(tmp_path: Path) -> None:
    case = sequences(tmp_path, {"FrameOfReferenceUID": "1.2.826.9"})
    for other in (chain_of(), chain_of(channel_grid="resample")):
        with pytest.raises(DataError, match=r"t2 \(t2\) and t1 have different frames of reference") as refused:
            other(case)
        assert "1.2.826.9" not in str(refused.value)
    registered = chain_of(channel_frames="registered")
    assert registered(case).shape == (2, 8, 8, 8)
    assert registered.fingerprint != chain_of().fingerprint == chain_of(channel_patients="same").fingerprint
    bare = sequences(tmp_path / "bare", {"FrameOfReferenceUID": ""})
    assert chain_of()(bare).shape == (2, 8, 8, 8)  # a file that says nothing contradicts nothing


def test_images_of_two_patients_are_no_case(tmp_path: Path) -> None:
    case = sequences(tmp_path, patient="QUITTENBAUM7")
    with pytest.raises(DataError, match=r"t2 \(t2\) and t1 are of different patients by their headers") as refused:
        chain_of()(case)
    assert "QUITTENBAUM7" not in str(refused.value)
    assert chain_of(channel_patients="ignore")(case).shape == (2, 8, 8, 8)
    for at, same in enumerate(("H1 ", "anonymous", "")):
        assert chain_of()(sequences(tmp_path / str(at), patient=same)).shape == (2, 8, 8, 8)


def test_one_image_under_two_names_is_refused(case: tuple[Path, ...], tmp_path: Path) -> None:
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(case[0].read_bytes())
    with pytest.raises(DataError, match=r"copy.nii.gz \(adc\) and t1 have the same pixels"):
        read_channels((case[0], case[1], copy), NAMES)

from __future__ import annotations

import gzip
import struct

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.cifti2 import BrainModelAxis, ScalarAxis
from scans_made import RAS_FROM_LPS, canonical_affine, letter_f, nifti, regridded

from medopt.core.errors import DataError
from medopt.imaging import read_scan

VOLUME, AFFINE = letter_f(), canonical_affine()


def refusal(path) -> str:
    with pytest.raises(DataError) as caught:
        read_scan(path)
    assert path.name in str(caught.value)
    return str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.permutations(range(3)).map(tuple), st.tuples(*[st.booleans()] * 3), st.sampled_from(["scan.nii", "scan.nii.gz"])
)
def test_every_storage_order_is_read_as_the_same_volume(tmp_path, order, flip, name):
    found = read_scan(nifti(tmp_path / name, *regridded(VOLUME, AFFINE, order, flip)))
    assert np.array_equal(found.array[0], VOLUME) and found.array.flags.c_contiguous
    assert np.allclose(found.affine, AFFINE, atol=1e-4)
    assert found.spacing_mm == pytest.approx((2.5, 0.75, 0.5), abs=1e-5)


def test_stored_values_are_scaled(tmp_path):
    found = read_scan(nifti(tmp_path / "s.nii", VOLUME, AFFINE, slope=0.5))
    assert np.allclose(found.array[0], VOLUME * 0.5 - 10)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_number_types(tmp_path, dtype):
    values = (VOLUME % 200).astype(dtype)
    assert np.array_equal(read_scan(nifti(tmp_path / "n.nii.gz", values, AFFINE)).array[0], values)


def test_rgb_voxels_are_three_channels(tmp_path):
    voxels = np.zeros(VOLUME.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["G"] = VOLUME % 251
    found = read_scan(nifti(tmp_path / "c.nii", voxels, AFFINE))
    assert np.array_equal(found.array, np.stack([0 * VOLUME, VOLUME % 251, 0 * VOLUME]))


@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_single_slice_is_an_image_as_displayed(tmp_path, across):
    volume = VOLUME.take([2], axis=across)
    found = read_scan(nifti(tmp_path / "i.nii", *regridded(volume, AFFINE, (2, 1, 0), (True, True, False))))
    expected = volume.squeeze(axis=across)
    assert np.array_equal(found.array[0], expected if across == 0 else expected[::-1])  # the head is up
    assert len(found.spacing_mm) == 2 and found.spatial_dims == 2


def test_two_dimensional_nifti(tmp_path):
    made = nibabel.Nifti1Image(np.arange(12, dtype=np.int16).reshape(4, 3), np.diag([-1.0, -1.0, 1.0, 1.0]))
    nibabel.save(made, tmp_path / "flat.nii.gz")
    assert np.array_equal(read_scan(tmp_path / "flat.nii.gz").array[0], np.arange(12).reshape(4, 3).T)


def saved(path, data, affine=None, sform=1, qform=1):
    made = nibabel.Nifti1Image(data, RAS_FROM_LPS @ AFFINE)
    made.set_sform(RAS_FROM_LPS @ (AFFINE if affine is None else affine), code=sform)
    made.set_qform(RAS_FROM_LPS @ AFFINE, code=qform)
    nibabel.save(made, path)
    return path


def test_several_volumes_are_refused(tmp_path):
    assert "3 volumes" in refusal(saved(tmp_path / "t.nii.gz", np.zeros((4, 5, 6, 3), np.int16)))
    assert read_scan(saved(tmp_path / "one.nii.gz", np.zeros((4, 5, 6, 1), np.int16))).array.shape == (1, 4, 5, 6)


def test_unknown_left_and_right_is_refused(tmp_path):
    assert "left and right" in refusal(saved(tmp_path / "u.nii", VOLUME, sform=0, qform=0))
    assert np.array_equal(read_scan(saved(tmp_path / "q.nii", VOLUME, sform=0, qform=1)).array[0], VOLUME)


def test_forms_that_disagree_on_left_and_right_are_refused(tmp_path):
    mirrored = AFFINE @ np.diag([1.0, 1.0, -1.0, 1.0])
    assert "disagree" in refusal(saved(tmp_path / "d.nii", VOLUME, mirrored))
    assert np.array_equal(read_scan(saved(tmp_path / "s.nii", VOLUME, mirrored, qform=0)).array[0], VOLUME[..., ::-1])


def test_a_singular_orientation_is_refused(tmp_path):
    assert "singular" in refusal(saved(tmp_path / "s.nii", VOLUME, AFFINE @ np.diag([1.0, 1.0, 0.0, 1.0]), qform=0))


def test_complex_voxels_are_refused(tmp_path):
    assert "complex" in refusal(nifti(tmp_path / "c.nii", VOLUME.astype(np.complex64), AFFINE))


@pytest.mark.parametrize("name", ["t.nii", "t.nii.gz"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.99])
def test_truncation_anywhere_is_refused(tmp_path, name, share):
    content = nifti(
        tmp_path / name, np.random.default_rng(0).integers(0, 999, (9, 9, 9)).astype(np.int16), AFFINE
    ).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    refusal(tmp_path / name)


def test_a_header_that_claims_terabytes_is_refused_at_once(tmp_path):
    path = nifti(tmp_path / "big.nii", VOLUME, AFFINE)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32000] * 3, "<i2").tobytes()
    path.write_bytes(content)
    assert "claims" in refusal(path)


def test_damaged_headers_never_end_in_anything_but_a_volume_or_a_refusal(tmp_path):
    path = nifti(tmp_path / "fuzzed.nii", VOLUME, AFFINE)
    content, draw = bytearray(path.read_bytes()), np.random.default_rng(0)
    for _ in range(60):
        damaged = content[:]
        for place in draw.integers(0, 352, draw.choice((1, 3, 10))):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_scan(path).array.ndim in (3, 4)
        except DataError as error:
            assert "fuzzed.nii" in str(error) and "not foreseen" not in str(error)


def test_a_surface_is_refused(tmp_path):
    axes = ScalarAxis(["a"]), BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4))
    nibabel.Cifti2Image(np.zeros((1, 8), np.float32), axes).to_filename(tmp_path / "s.dscalar.nii")
    assert "another format" in refusal(tmp_path / "s.dscalar.nii")


def test_what_is_only_named_nifti_is_refused(tmp_path):
    (tmp_path / "text.nii").write_text("not a scan" * 100)
    refusal(tmp_path / "text.nii")


@pytest.mark.parametrize(("unit", "size"), [("mm", 0.05), ("micron", 50), ("meter", 5e-5), ("unknown", 0.05)])
def test_the_unit_of_the_header_counts(tmp_path, unit, size):
    made = nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([size, size, 2 * size, 1]))
    made.header.set_xyzt_units(unit)
    nibabel.save(made, tmp_path / "u.nii")
    found = read_scan(tmp_path / "u.nii")
    assert found.spacing_mm == pytest.approx((0.1, 0.05, 0.05)) and found.affine[2, 0] == pytest.approx(0.1)


def patched(path, at: int, value: float):
    content = bytearray(nifti(path, VOLUME, AFFINE).read_bytes())
    struct.pack_into("<f", content, at, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("axis", range(3))
def test_two_sizes_of_a_voxel_are_refused(tmp_path, axis):
    size = float(np.linalg.norm(AFFINE[:3, axis]))
    at = 80 + 4 * axis
    assert read_scan(patched(tmp_path / "same.nii", at, size * 1.005)).array.shape == (1, *VOLUME.shape)
    assert "two sizes of a voxel" in refusal(patched(tmp_path / "d.nii", at, size * 1.02))


def test_an_absent_size_of_a_voxel_is_not_made_up(tmp_path, capfd):
    assert "does not say how large its voxels are" in refusal(patched(tmp_path / "a.nii", 84, 0.0))
    refusal(patched(tmp_path / "n.nii", 84, float("nan")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_whether_it_is_compressed_follows_from_its_content(tmp_path, kind):
    nibabel.save(kind(VOLUME, RAS_FROM_LPS @ AFFINE), tmp_path / "sound.nii")
    expected, content = read_scan(tmp_path / "sound.nii"), (tmp_path / "sound.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    for name in ("plain.nii.gz", "packed.nii"):
        found = read_scan(tmp_path / name)
        assert np.array_equal(found.array, expected.array) and np.array_equal(found.affine, expected.affine)
    (tmp_path / "cut.nii").write_bytes(gzip.compress(content)[:-30])
    refusal(tmp_path / "cut.nii")


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinite_values_are_refused_and_nan_is_kept(tmp_path, bad):
    values = VOLUME.astype(np.float32)
    values[0, 0, 0] = np.nan
    assert np.isnan(read_scan(nifti(tmp_path / "n.nii", values, AFFINE)).array).sum() == 1
    values[0, 0, 0] = bad
    assert "infinite" in refusal(nifti(tmp_path / "i.nii", values, AFFINE))

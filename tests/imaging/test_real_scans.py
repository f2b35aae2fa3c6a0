"""Real scanners' files, with the NIfTI that others made of them: volume and affine must agree."""

from __future__ import annotations

import numpy as np
import pytest
from real_data import real

from medopt.core.errors import DataError
from medopt.imaging import read_scan

AGREEING = [
    "anatomical/001",
    "anatomical/001_implicit",
    "generic/anatomical/001",
    "generic/anatomical/001_implicit",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed/001",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
    "generic/rgb/001",
    "philips_enhanced/anatomical/001",
    "philips_enhanced/anatomical/001_implicit",
    "siemens_multiframe/anatomical/001",
]


@pytest.mark.parametrize("truth", ["_ground_truth.nii.gz", "_ground_truth_reoriented.nii.gz"])
@pytest.mark.parametrize("name", AGREEING)
def test_dicom_agrees_with_the_nifti_that_others_made(name, truth):
    folder = real("dicom/vendors")
    dicom, nifti = read_scan(folder / name), read_scan(folder / f"{name}{truth}")
    assert dicom.array.shape == nifti.array.shape
    assert np.allclose(dicom.array, nifti.array, rtol=1e-6, atol=0)
    assert np.abs(dicom.affine - nifti.affine).max() < 1e-4
    assert np.allclose(dicom.spacing_mm, nifti.spacing_mm, atol=1e-5)


@pytest.mark.parametrize("name", ["philips_enhanced/dti/001", "philips_enhanced/fmri/001_implicit"])
def test_series_over_time_or_direction_are_refused_in_either_form(name):
    folder = real("dicom/vendors")
    with pytest.raises(DataError, match="time points"):
        read_scan(folder / name)
    with pytest.raises(DataError, match="4 volumes"):
        read_scan(folder / f"{name}_ground_truth.nii.gz")


def test_a_ct_series_is_in_hounsfield_units_with_the_head_last():
    found = read_scan(real("dicom/ct_series"))
    assert found.array.shape == (1, 17, 128, 88) and found.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    assert found.affine[2, 0] > 0 and found.affine[1, 1] > 0 and found.affine[0, 2] > 0
    assert found.array.min() >= -1024 and found.modality == "CT"


def test_the_series_of_one_study_lie_over_each_other():
    study = real("dicom/mr_study")
    flair, t2 = read_scan(study / "36459-FLAIRreg-76244"), read_scan(study / "37916-T2reg-88910")
    assert np.allclose(flair.affine, t2.affine) and flair.array.shape == (1, 22, 512, 512)
    assert flair.source["study"] == t2.source["study"] and flair.source["series"] != t2.source["series"]


def test_a_study_of_several_series_is_refused_and_listed():
    with pytest.raises(DataError, match=r"5 series.*'T1post' \(22 files\)"):
        read_scan(real("dicom/mr_study"))


def test_other_real_images():
    assert read_scan(f"{real('breastmnist/breastmnist.npz')}#test_images/155").array.shape == (1, 28, 28)
    picture = next(real("busi/benign").iterdir())
    assert read_scan(picture).array.shape == (3, 256, 256)
    crop = read_scan(next(real("hippocampus/images").iterdir()))
    assert crop.spatial_dims == 3 and crop.spacing_mm == pytest.approx((1, 1, 1))
    assert read_scan(next(real("mednist_small/Hand").iterdir())).array.shape == (1, 64, 64)

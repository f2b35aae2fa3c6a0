"""Corruptions: the same for the same case, worse with each level, within 0..1, and never outside of the scan."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from medopt.config import ShiftFamily
from medopt.transforms.corrupt import FAMILIES, LEVELS, corrupt, corrupt_all


def scan(*size: int, channels: int = 1, padding: int = 0) -> Tensor:
    """Smooth blobs with edges and a little grain, zeros around where padded."""
    random = torch.Generator().manual_seed(3)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    image = 0.35 + 0.15 * axes[-1] + 0.3 * (sum(a * a for a in axes) < 0.3)
    image = image + 0.02 * torch.randn(size, generator=random)
    image = image.clamp(0.05, 1).expand(channels, *size).clone()
    if padding:
        image[..., :padding] = 0
        image[..., -padding:] = 0
    return image


def test_the_study_file_names_these_families() -> None:
    assert get_args(ShiftFamily) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(48, 64), (12, 40, 32)])
def test_each_level_is_worse_than_the_one_before(family: str, size: tuple[int, ...]) -> None:
    image = scan(*size)
    worse = [corrupt(image, family, level, "case") for level in range(1, LEVELS + 1)]
    assert all(one.shape == image.shape and one.min() >= 0 and one.max() <= 1 for one in worse)
    change = [float((one - image).square().mean().sqrt()) for one in worse]
    assert change == sorted(change) and change[0] > 0.002, change
    assert change[-1] > 1.2 * change[0]
    # Something is left of the picture at the hardest level.
    assert np.corrcoef(worse[-1].ravel(), image.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_case_is_always_spoiled_alike_and_two_cases_differently(family: str) -> None:
    image = scan(40, 40)
    kept = image.clone()
    first, again, other = (corrupt(image, family, 4, case) for case in ("a", "a", "b"))
    assert torch.equal(first, again) and torch.equal(image, kept)
    if family == "contrast":  # it draws one of two directions: some of 12 cases differ from the first, some do not
        alike = [torch.equal(first, corrupt(image, family, 4, f"case{number}")) for number in range(12)]
        assert any(alike) and not all(alike)
    else:
        assert torch.equal(first, other) is (family in ("blur", "low_resolution", "compression"))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_stays_black_and_channels_keep_their_number(family: str) -> None:
    image = scan(40, 40, channels=3, padding=7)
    worse = corrupt(image, family, 5, "case")
    assert worse.shape == image.shape
    assert not worse[..., :7].any() and not worse[..., -7:].any()
    assert worse[..., 7:-7].any()


def test_a_black_image_stays_black_and_an_unknown_level_is_refused() -> None:
    black = torch.zeros(1, 16, 16)
    assert all(not corrupt(black, family, 3, "case").any() for family in FAMILIES)
    with pytest.raises(ValueError, match="level 6"):
        corrupt(black, "blur", 6, "case")


def test_motion_is_a_blur_along_one_line() -> None:
    """A point becomes a straight streak of about the path's length, and keeps its light."""
    image = torch.full((1, 96, 96), 1e-9)  # not black, which would count as padding
    image[0, 48, 48] = 1
    streak = corrupt(image, "motion", 5, "case")[0].double().numpy()
    assert streak.sum() == pytest.approx(1, abs=0.02)
    rows, columns = np.mgrid[:96, :96]
    points = np.stack([rows.ravel() - 48, columns.ravel() - 48])
    spread = np.linalg.eigvalsh((points * streak.ravel()) @ points.T / streak.sum())
    assert np.sqrt(spread[1]) == pytest.approx(11 / np.sqrt(12), rel=0.15) and np.sqrt(spread[0]) < 0.7


def test_all_at_once_are_the_same_as_one_by_one() -> None:
    image = scan(32, 40, padding=3)
    found = corrupt_all(image, FAMILIES, "case")
    assert list(found) == [(family, level) for family in FAMILIES for level in range(1, LEVELS + 1)]
    assert all(torch.equal(one, corrupt(image, *key, "case")) for key, one in found.items())

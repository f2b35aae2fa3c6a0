from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import resize as skimage_resize

from medopt.transforms.resize import crop_or_pad, fitted, resize


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def fit(image: torch.Tensor, size: tuple[int, int], how: str) -> torch.Tensor:
    """As the chain does it."""
    return crop_or_pad(resize(image, fitted(image.shape[1:], size, how)), size)


def triangle(have: int, want: int) -> np.ndarray:
    """Weights (want, have) of an antialiased linear interpolation, straight from its definition."""
    scale = have / want
    centre = (np.arange(want)[:, None] + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(have) + 0.5 - centre) / max(scale, 1), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(20, 30), (17, 100), (64, 13)])
def test_an_image_is_resized_as_pillow_does_it(size: tuple[int, int]) -> None:
    image = noise(1, 50, 71)
    expected = np.asarray(Image.fromarray(image[0].numpy()).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize(image, size)[0], expected, atol=1e-5)


def test_enlarging_is_plain_linear_interpolation() -> None:
    image = noise(1, 12, 9)
    expected = skimage_resize(image[0].numpy(), (30, 21), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resize(image, (30, 21))[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 9, 7), (20, 9, 30), (12, 18, 7), (6, 18, 14)])
def test_a_volume_is_resized_along_each_axis_by_its_own_filter(size: tuple[int, ...]) -> None:
    volume = noise(2, 12, 18, 14)
    depth, height, width = (triangle(have, want) for have, want in zip(volume.shape[1:], size, strict=True))
    expected = np.einsum("zd,yh,xw,cdhw->czyx", depth, height, width, volume.numpy())
    found = resize(volume, size)
    assert found.is_contiguous()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_stripes_finer_than_the_new_pixels_become_grey_instead_of_aliasing() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 64, 64)
    inside = resize(stripes, (16, 16))[..., 2:-2]
    assert (inside - 0.5).abs().max() < 0.02


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = noise(1, 8, 8)
    assert resize(image, (8, 8)) is image


def test_crop_or_pad_cuts_one_axis_and_fills_another_around_the_centre() -> None:
    image = torch.arange(1.0, 6 * 5 + 1).reshape(1, 6, 5)
    out = crop_or_pad(image, (4, 8))
    assert out.shape == (1, 4, 8)
    assert torch.equal(out[:, :, 1:6], image[:, 1:5])
    assert out[:, :, :1].sum() == 0 and out[:, :, 6:].sum() == 0


def test_padding_and_cropping_back_gives_the_same_volume() -> None:
    volume = noise(1, 5, 6, 7)
    assert torch.equal(crop_or_pad(crop_or_pad(volume, (9, 10, 11)), (5, 6, 7)), volume)


def test_pad_keeps_a_disc_round_and_stretch_does_not() -> None:
    rows, columns = torch.meshgrid(torch.arange(60) - 29.5, torch.arange(120) - 59.5, indexing="ij")
    disc = (rows**2 + columns**2 < 20**2).float()[None]

    def spread(image: torch.Tensor) -> float:
        by_row, by_column = image[0].sum(1), image[0].sum(0)
        axis = torch.arange(len(by_row)) - (len(by_row) - 1) / 2
        return float((by_column * axis**2).sum() / (by_row * axis**2).sum())

    padded, stretched = fit(disc, (40, 40), "pad"), fit(disc, (40, 40), "stretch")
    assert spread(padded) == pytest.approx(1, abs=0.01)
    assert spread(stretched) == pytest.approx(0.25, abs=0.02)
    assert padded[:, :10].sum() == 0 and padded[:, 30:].sum() == 0


def test_crop_or_pad_keeps_the_scale() -> None:
    image = noise(1, 40, 40)
    assert torch.equal(fit(image, (20, 20), "crop_or_pad"), image[:, 10:30, 10:30])

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers import gaussian_1d
from scipy.ndimage import gaussian_filter

from medopt.transforms.appearance import (
    Appearance,
    draw_field,
    draw_seed,
    log_uniform,
    smooth_fields,
)
from medopt.transforms.appearance import apply_appearance as apply_appearances
from medopt.transforms.appearance import gaussian_blur as gaussian_blurs
from medopt.transforms.resize import resize

EFFECTS: list[dict[str, Any]] = [
    {"blur": 1.5},
    {"low_resolution": 2.5},
    {"bias_field": (0.3, 0.2, -0.1, 0.3, 0.2, 0.1)},
    {"photons": 30},
    {"rician": 0.1},
    {"speckle": 0.3},
    {"gaussian": 0.1},
    {"gamma": 1.7},
    {"contrast": 1.4},
    {"sharpen": 0.8},
    {"brightness": -0.2},
]


def apply_appearance(image: torch.Tensor, look: Appearance) -> torch.Tensor:
    """To one image (C, *space)."""
    return apply_appearances(image[None], [look])[0]


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return gaussian_blurs(image[None], [sigma])[0]


def smooth_field(size: tuple[int, ...], coefficients: tuple[float, ...]) -> torch.Tensor:
    lines = smooth_fields(size, [coefficients], torch.device("cpu"))
    return torch.stack(torch.broadcast_tensors(*lines)).prod(0)[0, 0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("space", [(32, 24), (16, 12, 20)])
@pytest.mark.parametrize("effect", EFFECTS, ids=lambda e: next(iter(e)))
def test_every_effect_changes_the_image_and_stays_in_its_range(effect: dict[str, Any], space: tuple[int, ...]) -> None:
    image = noise(1, *space)
    before = image.clone()
    out = apply_appearance(image, Appearance(**effect, seed=3))
    assert out.shape == image.shape and out.dtype == torch.float32
    assert (out - image).abs().mean() > 0.005
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", ["photons", "rician", "speckle", "gaussian"])
def test_noise_follows_from_the_seed(name: str) -> None:
    look = Appearance(**{name: 0.1 if name != "photons" else 40}, seed=5)  # type: ignore[arg-type]
    image = noise(1, 20, 20)
    assert torch.equal(apply_appearance(image, look), apply_appearance(image, look))
    assert not torch.equal(apply_appearance(image, look), apply_appearance(image, replace(look, seed=6)))


def test_an_appearance_that_does_nothing_gives_the_image_itself() -> None:
    image = noise(1, 8, 8)
    images = image[None]
    assert apply_appearances(images, [Appearance(seed=9)]) is images


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.2, 1.49, 2.5])
@pytest.mark.parametrize("shape", [(1, 40, 31), (1, 20, 24, 18)])
def test_blur_is_the_gaussian_and_keeps_the_mean(sigma: float, shape: tuple[int, ...]) -> None:
    flat = torch.full(shape, 0.75)
    torch.testing.assert_close(gaussian_blur(flat, sigma), flat, atol=1e-6, rtol=0)
    spot = torch.zeros(shape)
    spot[(0, *(n // 2 for n in shape[1:]))] = 1
    out = gaussian_blur(spot, sigma)
    assert float(out.sum()) == pytest.approx(1, abs=1e-5)
    if sigma > 1:  # below, what a pixel integrates and what its centre says differ
        expected = gaussian_filter(spot[0].numpy(), math.sqrt(sigma**2 + 1 / 12), mode="nearest")
        assert float((out[0] - torch.from_numpy(expected)).abs().sum()) < 0.05


def test_blur_has_the_width_it_names() -> None:
    line = torch.zeros(1, 5, 61)
    line[..., 30] = 1
    weights = gaussian_blur(line, 2.0)[0, 2]
    variance = float((weights * (torch.arange(61) - 30) ** 2).sum())
    assert variance == pytest.approx(2.0**2 + 1 / 12, rel=0.03)  # the Gaussian and the pixel


def test_blur_replicates_the_edge_of_a_ramp_and_leaves_its_middle() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 8, 64)
    torch.testing.assert_close(gaussian_blur(ramp, 1.0)[..., 8:-8], ramp[..., 8:-8], atol=1e-6, rtol=0)


def test_low_resolution_removes_fine_stripes_and_keeps_coarse_ones() -> None:
    fine, coarse = ((torch.arange(64) // width % 2).float().expand(1, 64, 64) for width in (1, 16))
    look = Appearance(low_resolution=3)
    assert float(apply_appearance(fine, look).std()) < 0.1 * float(fine.std())
    assert float(apply_appearance(coarse, look).std()) > 0.8 * float(coarse.std())


def test_poisson_noise_has_the_variance_of_its_photons_and_keeps_the_mean() -> None:
    photons = 200.0
    for signal in (0.05, 0.2, 0.6):
        out = apply_appearance(torch.full((1, 300, 300), signal), Appearance(photons=photons, seed=1)).double()
        assert float(out.mean()) == pytest.approx(signal, rel=5e-3)
        assert float(out.var()) == pytest.approx(signal / photons, rel=0.03)


def test_few_photons_give_the_skew_of_counting() -> None:
    out = apply_appearance(torch.full((1, 400, 400), 0.5), Appearance(photons=12, seed=1)).double()
    skew = float(((out - out.mean()) ** 3).mean() / out.var() ** 1.5)
    assert 0.25 < skew < 0.75  # Poisson: 1 / sqrt(6) = 0.41


def test_rician_noise_lifts_black_and_is_gaussian_in_bright_places() -> None:
    sigma = 0.05
    black = apply_appearance(torch.zeros(1, 300, 300), Appearance(rician=sigma, seed=1)).double()
    assert float(black.mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
    assert float(black.std()) == pytest.approx(sigma * math.sqrt(2 - math.pi / 2), rel=0.02)
    bright = apply_appearance(torch.full((1, 300, 300), 0.5), Appearance(rician=sigma, seed=1)).double()
    assert float(bright.square().mean()) == pytest.approx(0.5**2 + 2 * sigma**2, rel=0.005)
    assert float(bright.std()) == pytest.approx(sigma, rel=0.02)


def test_speckle_grows_with_the_signal_and_gaussian_noise_does_not() -> None:
    def spread(signal: float, **effect: float) -> float:
        return float(apply_appearance(torch.full((1, 300, 300), signal), Appearance(**effect, seed=1)).std())  # type: ignore[arg-type]

    assert spread(0.5, speckle=0.1) == pytest.approx(0.05, rel=0.02)
    assert spread(0.25, speckle=0.1) == pytest.approx(0.025, rel=0.02)
    assert (
        spread(0.5, gaussian=0.04)
        == pytest.approx(spread(0.25, gaussian=0.04), rel=1e-3)
        == pytest.approx(0.04, rel=0.02)
    )


def test_sharpening_is_an_unsharp_mask() -> None:
    image = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.4
    found = apply_appearance(image, Appearance(sharpen=0.5))
    assert torch.allclose(found, image + 0.5 * (image - gaussian_blur(image, 1.0)), atol=1e-6)
    assert found.std() > image.std() and found.mean() == pytest.approx(float(image.mean()), abs=1e-3)


def test_gamma_contrast_and_brightness_are_their_formulas() -> None:
    image = noise(1, 30, 30)
    found = apply_appearance(image, Appearance(gamma=1.6))
    torch.testing.assert_close(found, image**1.6)
    found = apply_appearance(image, Appearance(contrast=1.3, brightness=0.05))
    torch.testing.assert_close(found, ((image - 0.5) * 1.3 + 0.55).clamp(0, 1))


def test_the_bias_field_is_smooth_and_multiplies() -> None:
    coefficients = (0.4, 0.0, 0.0, -0.3)
    field = smooth_field((40, 50), coefficients)
    assert float(field[-1, 0] / field[0, 0]) == pytest.approx(math.exp(0.8), rel=1e-4)  # linear along the rows
    assert float(field[20, 25]) > float(field[20, 0])  # the squared term of the columns falls outward
    assert float(field.diff(dim=0).abs().max()) < 0.05 and float(field.diff(dim=1).abs().max()) < 0.05
    image = 0.4 * noise(1, 40, 50)
    torch.testing.assert_close(apply_appearance(image, Appearance(bias_field=coefficients)), image * field)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_drawn_field_stays_within_the_largest_deviation_and_comes_near_it(dims: int) -> None:
    random = np.random.default_rng(0)
    found = [smooth_field((9,) * dims, draw_field(random, dims, 0.3)) for _ in range(400)]
    largest = max(float(field.max()) for field in found)
    assert 1.22 < largest <= 1.3 + 1e-5
    assert min(float(field.min()) for field in found) >= 1 / 1.3 - 1e-5
    assert draw_field(random, dims, 0) == (0.0,) * 2 * dims


def test_log_uniform_is_even_between_powers() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([log_uniform(random, 10, 1000) for _ in range(4000)])
    assert drawn.min() >= 10 and drawn.max() <= 1000
    assert (drawn < 100).mean() == pytest.approx(0.5, abs=0.03)


def test_seeds_come_from_the_generator() -> None:
    assert draw_seed(np.random.default_rng(1)) == draw_seed(np.random.default_rng(1))
    assert draw_seed(np.random.default_rng(1)) != draw_seed(np.random.default_rng(2))


@pytest.mark.parametrize("space", [(40, 33), (12, 20, 24)])
def test_a_lower_resolution_is_resizing_there_and_back_for_each_image(space: tuple[int, ...]) -> None:
    factors = [1.3, 2.6, 1.0, 7.0]
    images = torch.rand(4, 2, *space, generator=torch.Generator().manual_seed(1))
    found = apply_appearances(images, [Appearance(low_resolution=factor) for factor in factors])
    for image, out, factor in zip(images, found, factors, strict=True):
        small = [max(4, round(n / factor)) for n in space]
        torch.testing.assert_close(out, resize(resize(image, small), space), atol=2e-6, rtol=0)


def test_blurs_of_one_batch_have_each_their_own_width() -> None:
    images = torch.rand(3, 1, 30, 26, generator=torch.Generator().manual_seed(1))
    sigmas = [0.4, 2.5, 1.1]
    found = gaussian_blurs(images, sigmas)
    for image, out, sigma in zip(images, found, sigmas, strict=True):
        kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True)
        expected = torch.nn.functional.pad(image[None], [len(kernel) // 2] * 4, mode="replicate")
        for view in ((1, 1, -1, 1), (1, 1, 1, -1)):
            expected = torch.nn.functional.conv2d(expected, kernel.reshape(view))
        torch.testing.assert_close(out, expected[0], atol=1e-6, rtol=0)

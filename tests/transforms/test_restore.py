"""A point that is marked in the scan is found again where it was, by every way of fitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medopt.config import Intensity, Prepare
from medopt.core.records import Volume
from medopt.transforms import resize as resize_module
from medopt.transforms.prepare import PrepareChain
from medopt.transforms.restore import to_scan


def marked(shape: tuple[int, ...], at: tuple[float, ...]) -> np.ndarray:
    """A blob around a place given in fractions of the extent, two pixels wide or a 25th of the extent."""
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    wide = [max(2.0, n / 25) for n in shape]
    distance = sum(((a - f * n) / w) ** 2 for a, f, n, w in zip(axes, at, shape, wide, strict=True))
    return np.exp(-distance / 2).astype(np.float32)[None]


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop_or_pad"])
@pytest.mark.parametrize(
    ("shape", "size", "spacing", "wanted"),
    [
        ((120, 80), [64, 64], (1.0, 1.0), None),
        ((41, 67), [64, 96], (1.0, 1.0), None),  # smaller and odd
        ((90, 70), [64, 64], (0.5, 0.8), [1.0, 1.0]),
        ((60, 120), [64, 96], (0.8, 0.4), None),  # not square
        ((30, 60, 50), [24, 40, 48], (1.0, 1.0, 1.0), None),
        ((12, 60, 50), [40, 48, 48], (3.0, 0.9, 0.9), [1.0, 1.0, 1.0]),
    ],
)
def test_a_marked_point_comes_back(
    fit: str, shape: tuple[int, ...], size: list[int], spacing: tuple[float, ...], wanted: list[float] | None
) -> None:
    at = (0.55, 0.44, 0.58)[: len(shape)]
    config = Prepare(size=size, fit=fit, spacing_mm=wanted, intensity=Intensity(method="range", low=0, high=1))
    image = marked(shape, at)
    prepared = PrepareChain(config)(Volume(image, np.eye(4), spacing))
    back = to_scan(prepared, shape, spacing, config)
    assert back.shape == (1, *shape)
    weights = back[0].double().numpy().clip(0.1) - 0.1
    for axis, (n, fraction) in enumerate(zip(shape, at, strict=True)):
        others = tuple(other for other in range(len(shape)) if other != axis)
        profile = weights.sum(axis=others)
        assert (profile * np.arange(n)).sum() / profile.sum() == pytest.approx(fraction * n, abs=0.6)


def test_what_was_cut_off_is_zero_and_what_was_padded_is_gone() -> None:
    config = Prepare(size=[20, 40], fit="crop_or_pad")
    back = to_scan(torch.ones(1, 20, 40), (30, 30), (1.0, 1.0), config)
    assert back.shape == (1, 30, 30)
    assert back[0, 5:25].eq(1).all() and not back[0, :5].any() and not back[0, 25:].any()


def test_a_part_that_alone_was_resampled_comes_back_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Prepare(size=[16, 16, 16], fit="crop_or_pad", spacing_mm=[0.5, 1.0, 2.0])
    values, shape = torch.rand(1, 16, 16, 16), (40, 50, 60)
    whole = to_scan(values, shape, (1.0, 1.0, 1.0), config)
    monkeypatch.setattr(resize_module, "MAX_VOXELS", 90_000)
    part = to_scan(values, shape, (1.0, 1.0, 1.0), config)
    assert float((part - whole).abs().max()) < 0.35 and float((part - whole).abs().mean()) < 0.01

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from medopt.config import Augment
from medopt.transforms import augment as augment_module
from medopt.transforms.augment import AugmentParams, RandomAugment, apply, draw
from medopt.transforms.shift import SCANNERS, draw_scanner

OFF: dict[str, Any] = {
    "probability": 1,
    "flip": [],
    "rotate_degrees": 0,
    "scale": 0,
    "translate": 0,
    "gamma": 0,
    "contrast": 0,
    "brightness": 0,
    "gaussian_noise": 0,
}
STRONG: dict[str, Any] = {
    "shear": 0.1,
    "elastic": 0.05,
    "rician_noise": 0.1,
    "photons": 50,
    "blur_pixels": 2,
    "low_resolution": 3,
    "bias_field": 0.4,
    "erase": 0.4,
}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def augment(**settings: Any) -> Augment:
    return Augment.model_validate(settings)


def once(config: Augment, image: torch.Tensor, seed: int) -> torch.Tensor:
    return apply(image[None], [draw(config, image.ndim - 1, np.random.default_rng(seed))])[0]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 12), (1, 8, 10, 12)])
def test_without_strength_or_without_probability_nothing_happens(shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    images = image[None]
    for seed in range(20):
        for config in (augment(**OFF), augment(**STRONG, probability=0, flip=[])):
            assert apply(images, [draw(config, image.ndim - 1, np.random.default_rng(seed))]) is images


EACH: list[dict[str, Any]] = [
    {"flip": ["left_right"]},
    {"rotate_degrees": 20},
    {"scale": 0.3},
    {"shear": 0.3},
    {"translate": 0.2},
    {"elastic": 0.08},
    {"gamma": 0.5},
    {"contrast": 0.5},
    {"brightness": 0.2},
    {"gaussian_noise": 0.1},
    {"rician_noise": 0.1},
    {"photons": 20},
    {"blur_pixels": 2},
    {"low_resolution": 3},
    {"bias_field": 0.5},
    {"erase": 0.5},
]


@pytest.mark.parametrize("effect", EACH, ids=lambda e: next(iter(e)))
@pytest.mark.parametrize("shape", [(1, 24, 20), (1, 10, 12, 14)])
def test_each_setting_of_the_study_changes_images_alone(effect: dict[str, Any], shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    changes = [float((once(augment(**OFF | effect), image, seed) - image).abs().mean()) for seed in range(8)]
    assert max(changes) > 0.01


@pytest.mark.parametrize("shift", ["none", *SCANNERS])
@pytest.mark.parametrize("shape", [(1, 24, 20), (3, 16, 16), (1, 10, 12, 14)])
def test_images_keep_shape_and_range_and_are_left_as_they_were(shift: str, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    before = image.clone()
    for seed in range(10):
        out = once(augment(**STRONG, probability=0.8, shift=shift), image, seed)
        assert out.shape == image.shape and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1 and out.isfinite().all()
    assert torch.equal(image, before)


def test_the_same_generator_gives_the_same_image_and_another_another() -> None:
    config, image = augment(**STRONG, probability=1), noise(1, 20, 20)
    assert torch.equal(once(config, image, 4), once(config, image, 4))
    assert not torch.equal(once(config, image, 4), once(config, image, 5))


def test_turning_one_effect_off_leaves_the_others_as_drawn() -> None:
    looks = [
        draw(augment(**OFF | {"gamma": 0.3, "blur_pixels": blur}), 2, np.random.default_rng(0)).look for blur in (0, 2)
    ]
    assert looks[0].gamma == looks[1].gamma != 1
    assert looks[0].blur == 0 < looks[1].blur


def test_an_erased_box_is_filled_with_the_mean_and_no_larger_than_named() -> None:
    config, image = augment(**OFF | {"erase": 0.5}), noise(1, 40, 60)
    areas = []
    for seed in range(30):
        out = once(config, image, seed)
        erased = out != image
        assert out[erased].unique().numel() == 1 and float(out[erased][0]) == pytest.approx(float(image.mean()))
        assert erased.any(1).sum() <= 31 and erased.any(2).sum() <= 21
        areas.append(float(erased.float().mean()))
    assert min(areas) > 0.01 and max(areas) > 0.1


def test_a_drawing_can_be_applied_again() -> None:
    drawn = draw(augment(**STRONG, probability=1), 2, np.random.default_rng(0))
    assert isinstance(drawn, AugmentParams)
    assert torch.equal(apply(noise(1, 1, 20, 20), [drawn]), apply(noise(1, 1, 20, 20), [drawn]))


def test_a_shift_draws_the_scanner_whole_and_in_its_share_of_images() -> None:
    config = augment(shift="radiograph", shift_probability=0.4, photons=0)
    looks = [draw(config, 2, np.random.default_rng(seed)).look for seed in range(300)]
    shifted = [look for look in looks if look.photons]
    assert len(shifted) / 300 == pytest.approx(0.4, abs=0.08)
    assert all(look.bias_field and look.gamma != 1 and look.contrast != 1 for look in shifted)


@pytest.mark.parametrize("modality", sorted(SCANNERS))
def test_a_scanner_has_the_traits_of_its_modality(modality: str) -> None:
    random = np.random.default_rng(0)
    looks = [draw_scanner(modality, 3, random) for _ in range(50)]
    assert len(set(looks)) == 50
    physics = {
        "radiograph": lambda look: look.photons >= 60 and not look.rician and len(look.bias_field) == 6,
        "ct": lambda look: look.gaussian > 0 and look.gamma == look.contrast == 1 and not look.bias_field,
        "mr": lambda look: look.rician > 0 and not look.photons and len(look.bias_field) == 6,
        "ultrasound": lambda look: look.speckle > 0 and not look.photons and not look.rician,
    }
    assert all(physics[modality](look) for look in looks)


def test_a_sharper_ct_kernel_is_noisier() -> None:
    random = np.random.default_rng(0)
    looks = [draw_scanner("ct", 2, random) for _ in range(400)]
    sharp, soft = ([look.gaussian for look in looks if (look.blur < 0.75) == side] for side in (True, False))
    assert np.mean(sharp) > 1.3 * np.mean(soft)


def test_the_monai_transform_follows_its_random_state() -> None:
    image = noise(1, 20, 20)

    def run(seed: int) -> list[torch.Tensor]:
        chain = Compose([RandomAugment(augment(**STRONG, probability=1))])
        chain.set_random_state(seed)
        return [chain(image) for _ in range(3)]

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    assert all(float(out.min()) >= 0 and float(out.max()) <= 1 for out in first)


PRESETS = ["none", *SCANNERS]


@pytest.mark.parametrize("shift", PRESETS)
@pytest.mark.parametrize("shape", [(1, 40, 33), (3, 20, 24), (1, 10, 12, 14)])
def test_a_batch_is_what_its_images_are_alone(shift: str, shape: tuple[int, ...]) -> None:
    config, dims = augment(**STRONG, probability=0.6, shift=shift, flip=["left_right", "up_down"]), len(shape) - 1
    images = noise(12, *shape)
    drawn = [draw(config, dims, np.random.default_rng(seed)) for seed in range(12)]
    whole = apply(images, drawn)
    order = [7, 2, 11, 0, 5]
    torch.testing.assert_close(apply(images[order], [drawn[row] for row in order]), whole[order], atol=1e-6, rtol=0)
    for row, one in enumerate(drawn):
        torch.testing.assert_close(apply(images[row : row + 1], [one])[0], whole[row], atol=1e-6, rtol=0)


def test_a_large_batch_is_changed_in_parts_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config, images = augment(**STRONG, probability=0.6, shift="mr"), noise(9, 1, 32, 32)
    drawn = [draw(config, 2, np.random.default_rng(seed)) for seed in range(9)]
    whole = apply(images, drawn)
    monkeypatch.setattr(augment_module, "_AT_ONCE", 2 * 32 * 32)
    assert torch.equal(apply(images, drawn), whole)


def padded(channels: int = 1) -> torch.Tensor:
    """A scan in a frame of zeros that is 8 wide, with a black spot inside."""
    image = torch.zeros(channels, 48, 48)
    image[:, 8:-8, 8:-8] = 0.2 + 0.6 * noise(channels, 32, 32)
    image[:, 20:28, 20:28] = 0
    return image


@pytest.mark.parametrize(
    "effect",
    [{"contrast": 0.5}, {"brightness": 0.3}, {"gaussian_noise": 0.3}, {"rician_noise": 0.3}, {"blur_pixels": 2}],
    ids=lambda effect: next(iter(effect)),
)
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_stays_padding_and_black_within_the_scan_does_not(effect: dict[str, Any], channels: int) -> None:
    image, config = padded(channels), augment(**OFF | effect)
    lifted = []
    for seed in range(12):
        out = once(config, image, seed)
        frame = out.clone()
        frame[:, 8:-8, 8:-8] = 0
        assert not frame.any()
        lifted.append(float(out[:, 23:25, 23:25].mean()))
    if "blur_pixels" not in effect:
        assert max(lifted) > 0.02


def test_what_a_geometry_brings_in_from_outside_is_padding_too() -> None:
    config, image = augment(**OFF | {"rotate_degrees": 30, "brightness": 0.3}), 0.3 + 0.4 * noise(1, 40, 40)
    still = augment(**OFF | {"rotate_degrees": 30})
    seen = 0
    for seed in range(10):
        outside = once(still, image, seed) == 0
        seen += int(outside.sum())
        assert not once(config, image, seed)[outside].any()
    assert seen > 500


def test_grey_scans_with_three_channels_get_grey_noise_and_coloured_ones_coloured() -> None:
    config = augment(**OFF | {"gaussian_noise": 0.2, "photons": 30, "rician_noise": 0.1})
    grey, coloured = noise(1, 32, 32).expand(3, 32, 32), noise(3, 32, 32)
    drawn = [draw(config, 2, np.random.default_rng(seed)) for seed in range(4)]
    out = apply(torch.stack([grey, coloured, grey, coloured]), drawn)
    alone = apply(grey[None, :1], drawn[:1])
    assert torch.equal(out[::2], out[::2, :1].expand_as(out[::2])) and torch.equal(out[0, :1], alone[0])
    change = (out[1] - coloured).flatten(1)
    assert abs(np.corrcoef(change.numpy())[0, 1]) < 0.5


@pytest.mark.parametrize("shift", PRESETS)
@pytest.mark.parametrize("shape", [(1, 20, 24), (1, 10, 12, 14)])
def test_all_is_done_on_the_device_of_the_images(shift: str, shape: tuple[int, ...]) -> None:
    """torch's device without memory refuses, as a GPU does, what mixes its tensors with those of another."""
    config, dims = augment(**STRONG, probability=0.7, shift=shift), len(shape) - 1
    drawn = [draw(config, dims, np.random.default_rng(seed)) for seed in range(8)]
    out = apply(torch.empty(8, *shape, device="meta"), drawn)
    assert out.device.type == "meta" and out.shape == (8, *shape)

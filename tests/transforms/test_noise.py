from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from medopt.transforms.noise import Uniforms, mix, normal

CPU = torch.device("cpu")


def test_noise_is_standard_normal() -> None:
    for seed in range(5):
        found = normal([seed], 0, 1, (500, 500), CPU).double().numpy().ravel()
        assert kstest(found, "norm").pvalue > 1e-3
        assert abs(found.mean()) < 0.008 and abs(found.std() - 1) < 0.006
        assert abs(found).max() > 4


@pytest.mark.parametrize("space", [(64, 48), (7, 9), (11, 12, 13)])
def test_an_images_noise_is_the_same_alone_and_in_any_batch(space: tuple[int, ...]) -> None:
    seeds = [5, 2**31 - 1, 0, 17]
    batch = normal(seeds, 3, 1, space, CPU)
    assert batch.shape == (4, 1, *space)
    for row, seed in enumerate(seeds):
        assert torch.equal(normal([seed], 3, 1, space, CPU)[0], batch[row])
        assert torch.equal(normal([seed], 3, 4, space, CPU)[0, :1], batch[row])


def test_seeds_streams_channels_and_neighbouring_pixels_are_independent() -> None:
    space, count = (300, 300), 90_000
    one = normal([1, 2, 2**30], 0, 3, space, CPU).double()
    rows = [*one.reshape(9, -1), *normal([1], 1, 1, space, CPU).double().reshape(1, -1)]
    rows += [one[0, 0].roll(1, axis).reshape(-1) for axis in (0, 1)]
    correlation = np.corrcoef(torch.stack(rows).numpy())
    assert abs(correlation - np.eye(len(rows))).max() < 5 / count**0.5
    # Neither do the sizes of neighbours say anything of each other.
    large = np.corrcoef(torch.stack(rows).square().numpy())
    assert abs(large - np.eye(len(rows))).max() < 5 / count**0.5


def test_one_bit_of_the_counter_changes_half_of_the_bits() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    for bit in range(32):
        changed = mix(numbers) ^ mix(numbers ^ np.uint32(1 << bit))
        assert 15 < np.unpackbits(changed.view(np.uint8)).mean() * 32 < 17
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint32)))) == 100_000


def test_the_noise_of_a_seed_is_that_of_earlier_versions() -> None:
    """A training that goes on after an update, and one that is repeated, see the same images."""
    for seeds, stream, channels, space, digest in (
        ([5, 2**32 - 1], 3, 2, (7, 9), "f7f720461a47"),
        ([0], 0, 1, (4,), "9cf2f5e33b9f"),
        ([7], 2**31, 3, (2, 3, 5), "6fadfdc1c2fd"),
    ):
        found = normal(seeds, stream, channels, space, CPU)
        assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:12] == digest


@pytest.mark.parametrize("seed", range(3))
def test_uniforms_are_what_the_generator_would_give_in_turn(seed: int) -> None:
    """Across the numbers that are drawn at once, singly and in arrays."""
    fast, plain = Uniforms(np.random.default_rng(seed)), np.random.default_rng(seed)
    for turn in range(50):
        low, high = -turn / 7, 1 + turn / 3
        assert fast.uniform(low, high) == plain.uniform(low, high)
        assert fast.uniform() == plain.uniform()
        for size in (3, (2, 5)):
            assert np.array_equal(fast.uniform(low, high, size), plain.uniform(low, high, size))

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medopt.config import Augment
from medopt.transforms.spatial import Geometry, draw_geometry
from medopt.transforms.spatial import apply_geometry as apply_geometries

STILL: dict[str, Any] = {"probability": 1, "flip": [], "rotate_degrees": 0, "scale": 0, "translate": 0}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def turn(dims: int, first: int, second: int, degrees: float) -> np.ndarray:
    """A rotation of the (x, y, z) coordinates `first` and `second`."""
    angle, matrix = math.radians(degrees), np.eye(dims, dims + 1)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def apply_geometry(image: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """To one image (C, *space)."""
    return apply_geometries(image[None], [geometry])[0]


def centroid(image: torch.Tensor) -> np.ndarray:
    """Centre of mass relative to the image's centre, (x, y, z) in pixels."""
    weights = image[0].double()
    found = []
    for axis in reversed(range(weights.ndim)):
        profile = weights.sum([other for other in range(weights.ndim) if other != axis])
        place = torch.arange(len(profile)) - (len(profile) - 1) / 2
        found.append(float((profile * place).sum() / profile.sum()))
    return np.array(found)


def spot(*space: int, at: tuple[float, ...]) -> torch.Tensor:
    """A smooth spot at (x, y, z) pixels from the centre."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in space]
    distance = sum(
        (grid - where) ** 2 for grid, where in zip(torch.meshgrid(*axes, indexing="ij"), at[::-1], strict=True)
    )
    return torch.exp(-distance / 8)[None]  # type: ignore[arg-type]


@pytest.mark.parametrize(("axis", "dims"), [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)])
def test_a_flip_moves_pixels_exactly(axis: int, dims: int) -> None:
    image = noise(2, *(5, 8, 7)[:dims])
    matrix = np.eye(dims, dims + 1)
    matrix[axis, axis] = -1
    assert torch.equal(apply_geometry(image, Geometry(matrix)), image.flip(dims - axis))


@pytest.mark.parametrize(("name", "axis"), [("left_right", 3), ("up_down", 2), ("slice", 1)])
def test_flips_by_name_turn_half_of_the_volumes_around_their_own_axis(name: str, axis: int) -> None:
    random, image = np.random.default_rng(0), noise(1, 4, 5, 6)
    config = Augment.model_validate(STILL | {"flip": [name]})
    found = [apply_geometry(image, draw_geometry(config, 3, random)) for _ in range(60)]
    flipped = [torch.equal(out, image.flip(axis)) for out in found]
    assert all(turned or torch.equal(out, image) for turned, out in zip(flipped, found, strict=True))
    assert 15 < sum(flipped) < 45


def test_a_slice_flip_means_nothing_for_an_image() -> None:
    config = Augment.model_validate(STILL | {"flip": ["slice"]})
    assert draw_geometry(config, 2, np.random.default_rng(0)).flipped == ()


def test_a_flip_of_both_axes_resampled_agrees_with_the_exact_one() -> None:
    image = noise(1, 11, 6)
    nearly = np.array([[-1, 1e-9, 0], [0, -1, 0]])
    assert Geometry(nearly).flipped is None
    torch.testing.assert_close(apply_geometry(image, Geometry(nearly)), image.flip(1, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_rot90(quarters: int) -> None:
    image = noise(1, 9, 9)
    found = apply_geometry(image, Geometry(turn(2, 0, 1, 90 * quarters)))
    torch.testing.assert_close(found, torch.rot90(image, quarters, dims=(1, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("space", [(48, 80), (81, 40)])
def test_a_rotation_of_an_oblong_image_turns_a_spot_on_a_circle(space: tuple[int, int]) -> None:
    at = (12.0, -7.0)
    matrix = turn(2, 0, 1, 33)
    found = centroid(apply_geometry(spot(*space, at=at), Geometry(matrix)))
    # The matrix maps output to input places, so what is seen moves by its inverse.
    np.testing.assert_allclose(found, np.linalg.inv(matrix[:, :2]) @ at, atol=0.05)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 2)])
def test_a_rotation_of_a_volume_turns_in_its_own_plane(first: int, second: int) -> None:
    at = (5.0, -4.0, 3.0)
    matrix = turn(3, first, second, 25)
    found = centroid(apply_geometry(spot(24, 30, 36, at=at), Geometry(matrix)))
    np.testing.assert_allclose(found, np.linalg.inv(matrix[:, :3]) @ at, atol=0.05)


def test_a_translation_shifts_by_a_fraction_of_the_extent() -> None:
    matrix = np.eye(2, 3)
    matrix[:, 2] = 2 * 3 / 20, -2 * 2 / 10  # 3 columns and -2 rows, in units of half the extent
    image = noise(1, 10, 20)
    found = apply_geometry(image, Geometry(matrix))
    torch.testing.assert_close(found[:, 2:, :-3], image[:, :-2, 3:], atol=1e-5, rtol=0)
    assert found[:, :2].abs().max() < 1e-5 and found[:, :, -3:].abs().max() < 1e-5


def test_a_smaller_matrix_magnifies() -> None:
    matrix = np.eye(2, 3) / 1.5
    np.testing.assert_allclose(centroid(apply_geometry(spot(60, 60, at=(8, 4)), Geometry(matrix))), (12, 6), atol=0.05)


def test_an_elastic_field_moves_smoothly_and_never_further_than_it_names() -> None:
    config = Augment.model_validate(STILL | {"elastic": 0.04})
    for dims, space in ((2, (50, 70)), (3, (20, 24, 30))):
        random, moved = np.random.default_rng(0), []
        inside = (slice(None), *(slice(n // 8, -(n // 8)) for n in space))
        for _ in range(20):
            geometry = draw_geometry(config, dims, random)
            for axis, length in enumerate(space, start=1):
                ramp = (torch.arange(length) / length).reshape(-1, *[1] * (dims - axis)).expand(1, *space)
                out = apply_geometry(ramp, geometry)
                change = (out - ramp)[inside]
                moved.append(float(change.abs().max()))
                assert (out[inside].diff(dim=axis) > 0).all(), "the field folds"
        assert max(moved) <= 0.04 + 1e-5
        assert np.mean(moved) > 0.01


def test_equal_control_points_shift_the_whole_image() -> None:
    elastic = torch.zeros(2, 7, 7)
    elastic[0] = 2 * 4 / 32
    image = noise(1, 32, 32)
    found = apply_geometry(image, Geometry(np.eye(2, 3), elastic))
    torch.testing.assert_close(found[:, :, :-4], image[:, :, 4:], atol=1e-4, rtol=0)


def test_nothing_drawn_gives_the_image_itself() -> None:
    image = noise(1, 6, 6, 6)
    geometry = draw_geometry(Augment.model_validate(STILL), 3, np.random.default_rng(0))
    images = image[None]
    assert apply_geometries(images, [geometry]) is images


@pytest.mark.parametrize("dims", [2, 3])
def test_draws_stay_within_their_strength(dims: int) -> None:
    random = np.random.default_rng(0)

    def drawn(**strength: Any) -> list[np.ndarray]:
        config = Augment.model_validate(STILL | strength)
        return [draw_geometry(config, dims, random).matrix for _ in range(200)]

    turned = drawn(rotate_degrees=20)
    assert np.allclose([np.linalg.det(m[:, :dims]) for m in turned], 1)
    angles = [math.degrees(math.acos(min(1, (np.trace(m[:, :dims]) - dims + 2) / 2))) for m in turned]
    assert max(angles) <= (20 if dims == 2 else 20 * 3) + 1e-6 and max(angles) > 18
    sizes = [m[0, 0] for m in drawn(scale=0.25)]
    assert 1 / 1.25 <= min(sizes) < 0.82 and 1.22 < max(sizes) <= 1.25
    shifts = np.abs([m[:, -1] for m in drawn(translate=0.1)])
    assert 0.19 < shifts.max() <= 0.2
    shears = np.array([m[:, :dims] - np.eye(dims) for m in drawn(shear=0.3)])
    assert 0.28 < np.abs(shears[:, 0, 1]).max() <= 0.3 and np.count_nonzero(shears) == 200


def test_each_effect_happens_with_its_probability() -> None:
    config = Augment.model_validate(STILL | {"probability": 0.3, "translate": 0.1})
    random = np.random.default_rng(0)
    happened = [draw_geometry(config, 2, random).flipped is None for _ in range(1000)]
    assert np.mean(happened) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("space", [(40, 31), (17, 20, 23)])
def test_a_batch_of_geometries_is_scipys_linear_interpolation(space: tuple[int, ...]) -> None:
    dims, random = len(space), np.random.default_rng(3)
    config = Augment(rotate_degrees=25, scale=0.3, shear=0.2, translate=0.1, probability=0.9, flip=["up_down"])
    geometries = [draw_geometry(config, dims, random) for _ in range(5)]
    images = noise(5, 2, *space)
    found = apply_geometries(images, geometries).numpy()
    lengths = np.array(space)
    unit = [(2 * np.arange(n) + 1) / n - 1 for n in space]
    # In pixels, from the centre.
    places = np.stack(np.meshgrid(*unit, indexing="ij")) * lengths.reshape(-1, *[1] * dims) / 2
    for row, geometry in enumerate(geometries):
        matrix = geometry.matrix[:, :dims][::-1, ::-1]  # from x, y, z to the order of the axes
        shift = geometry.matrix[::-1, dims] * lengths / 2
        where = np.tensordot(matrix, places, 1) + (shift + (lengths - 1) / 2).reshape(-1, *[1] * dims)
        for channel in range(2):
            padded = np.pad(images[row, channel].numpy(), 1)  # scipy does not blend into what is outside
            expected = map_coordinates(padded, where + 1, order=1, mode="constant")
            np.testing.assert_allclose(found[row, channel], expected, atol=2e-4)

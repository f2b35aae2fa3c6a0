from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans_made import canonical_affine, letter_f, regridded, rotation

from medopt.core.errors import DataError
from medopt.imaging import geometry

orders = st.permutations(range(3)).map(tuple)
flips = st.tuples(st.booleans(), st.booleans(), st.booleans())
axis = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda vector: np.linalg.norm(vector) > 0.1)
spacings = st.tuples(*[st.floats(0.2, 6.0)] * 3)


@settings(max_examples=60, deadline=None)
@given(orders, flips, axis, st.floats(-25, 25), spacings)
def test_any_grid_of_a_volume_comes_back_to_the_canonical_one(order, flip, about, degrees, spacing):
    volume, affine = letter_f(), canonical_affine(spacing, rotation(about, degrees))
    grid, grid_affine = regridded(volume, affine, order, flip)
    axes = geometry.canonical_axes(grid_affine)
    assert np.array_equal(axes.to_volume(grid), volume)
    assert np.allclose(axes.affine(grid_affine, grid.shape), affine, atol=1e-9)
    assert axes.shape(grid.shape) == volume.shape
    assert np.allclose(geometry.spacing(affine), spacing)


@settings(max_examples=30, deadline=None)
@given(orders, flips)
def test_undone_is_a_view_in_the_grids_own_order(order, flip):
    axes = geometry.Axes(order, flip)
    grid = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    volume = np.ascontiguousarray(axes.to_volume(grid))
    back = axes.to_grid(volume)
    assert np.array_equal(back, grid)
    back[...] = 0
    assert not volume.any()


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4)), np.full((4, 4), np.nan), np.array([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])],
)
def test_an_affine_without_three_directions_is_refused(bad):
    with pytest.raises(DataError, match="singular"):
        geometry.canonical_axes(bad)


@pytest.mark.parametrize(
    ("across", "rows", "columns"),
    [(0, [0, 1, 0], [1, 0, 0]), (1, [0, 0, -1], [1, 0, 0]), (2, [0, 0, -1], [0, 1, 0])],
    ids=["axial", "coronal", "sagittal"],
)
def test_one_slice_is_displayed_with_the_head_or_the_face_up(across, rows, columns):
    shape = [3, 3, 3]
    shape[across] = 1
    affine = canonical_affine((1.0, 1.0, 1.0))
    axes = geometry.canonical_axes(affine)
    shown = geometry.display_axes(axes, axes.shape(shape)).affine(affine, tuple(shape))
    assert np.allclose(shown[:3, 1], rows)
    assert np.allclose(shown[:3, 2], columns)


def test_without_a_place_a_voxel_is_a_millimetre_in_canonical_directions():
    assert geometry.default_affine().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert geometry.default_affine((2, 3, 4)).tolist() == [[0, 0, 4, 0], [0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]]

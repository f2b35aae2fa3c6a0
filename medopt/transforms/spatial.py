"""Random geometry: flips, rotation, scale, shear, translation and elastic distortion in one interpolation.

Parameters are drawn apart from applying them, so that a drawing can be logged, tested and applied again; they are
applied to a batch at once, on the device where it lies. An image's result does not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medopt.config import Augment
from medopt.transforms.noise import Random

# Positions of the axes in torch's (x, y, z) grid order, for 2-D and 3-D alike.
_FLIP_AXIS = {"left_right": 0, "up_down": 1, "slice": 2}
_CONTROLS = 7  # control points an axis of the elastic field: four pieces of a cubic spline


@dataclass(frozen=True, slots=True)
class Geometry:
    """A drawn geometry: `matrix` (S, S + 1) in grid units (-1 to 1), `elastic` (S, 7, ...) displacements or None."""

    matrix: NDArray[np.float64]
    elastic: Tensor | None = None

    @property
    def flipped(self) -> tuple[int, ...] | None:
        """The axes of (N, C, *space) that it flips, where it does nothing else; None where it interpolates."""
        rows, dims = self.matrix.tolist(), len(self.matrix)
        signs = [row[axis] for axis, row in enumerate(rows)]
        if self.elastic is not None or any(abs(sign) != 1 for sign in signs) or sum(map(_nonzero, rows)) != dims:
            return None
        return tuple(dims + 1 - axis for axis in range(dims) if signs[axis] < 0)


def _nonzero(values: Sequence[float]) -> int:
    return len(values) - values.count(0)


def draw_geometry(config: Augment, spatial_dims: int, random: Random) -> Geometry:
    """Draw flips, rotation (degrees), scale, shear, translation (fractions) and elastic displacements.

    Each effect happens with the configured probability, flips with one half.
    """

    def chance() -> bool:
        return random.uniform() < config.probability

    matrix = np.eye(spatial_dims, spatial_dims + 1)
    linear = matrix[:, :-1]
    if config.rotate_degrees and chance():
        linear @= _rotation(spatial_dims, config.rotate_degrees, random)
    if config.scale and chance():
        linear *= math.exp(random.uniform(-1, 1) * math.log1p(config.scale))
    if config.shear and chance():
        linear[:, 1] += linear[:, 0] * random.uniform(-config.shear, config.shear)
    if config.translate and chance():
        # The grid spans 2 units over the extent.
        matrix[:, -1] = random.uniform(-2 * config.translate, 2 * config.translate, spatial_dims)
    for name in config.flip:
        axis = _FLIP_AXIS[name]
        if axis < spatial_dims and random.uniform() < 0.5:
            linear[axis] *= -1
    elastic = None
    if config.elastic and chance():
        drawn = random.uniform(-2 * config.elastic, 2 * config.elastic, (spatial_dims, *[_CONTROLS] * spatial_dims))
        elastic = torch.tensor(drawn, dtype=torch.float32)
    return Geometry(matrix, elastic)


def _rotation(spatial_dims: int, degrees: float, random: Random) -> NDArray[np.float64]:
    out = np.eye(spatial_dims)
    planes = [(0, 1)] if spatial_dims == 2 else [(0, 1), (0, 2), (1, 2)]
    for first, second in planes:
        angle = math.radians(random.uniform(-degrees, degrees))
        turn = np.eye(spatial_dims)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        out = out @ turn
    return out


def apply_geometry(images: Tensor, geometries: Sequence[Geometry]) -> Tensor:
    """Resample each of (N, C, *space) once, linearly; what comes from outside is 0. Flips alone move pixels, exactly.

    Where nothing is to be done to any image, they are returned themselves.
    """
    flips: dict[tuple[int, ...] | None, list[int]] = {}
    for row, geometry in enumerate(geometries):
        flips.setdefault(geometry.flipped, []).append(row)
    if list(flips) == [()]:
        return images
    # Mostly all are resampled: to choose those that are and to put them back costs more than to do some in vain.
    out = _resampled(images, geometries) if 2 * len(flips.get(None, ())) > len(images) else torch.empty_like(images)
    for axes, rows in flips.items():
        where = torch.tensor(rows, device=images.device)
        if axes is not None:
            out.index_copy_(0, where, images.index_select(0, where).flip(axes))
        elif 2 * len(rows) <= len(images):
            part = images.index_select(0, where)
            out.index_copy_(0, where, _resampled(part, [geometries[row] for row in rows]))
    return out


def _resampled(images: Tensor, geometries: Sequence[Geometry]) -> Tensor:
    space = images.shape[2:]
    grid = _grid(np.stack([geometry.matrix for geometry in geometries]), space, images.device)
    bent = [row for row, geometry in enumerate(geometries) if geometry.elastic is not None]
    if bent:
        controls = torch.stack([field for geometry in geometries if (field := geometry.elastic) is not None])
        fields = displacements(controls.to(images.device), space)
        grid.index_add_(0, torch.tensor(bent, device=images.device), fields)
    return F.grid_sample(images, grid.movedim(1, -1), padding_mode="zeros", align_corners=False)


def _grid(matrices: NDArray[np.float64], space: Sequence[int], device: torch.device) -> Tensor:
    """Where each output pixel comes from: (N, S, *space) in grid units, coordinates in torch's order x, y, z.

    Matrices (N, S, S + 1) are scaled by the axes' lengths, so that a rotation of a non-square image is a rotation.
    """
    dims, lengths = len(space), np.array(space[::-1])
    scaled = matrices.copy()
    scaled[:, :, :-1] *= lengths[None, :] / lengths[:, None]
    columns = torch.from_numpy(scaled).float().to(device)
    out = columns[:, :, -1].reshape(len(matrices), dims, *[1] * dims)
    # Each axis adds its own line by broadcasting: ten times faster than affine_grid's matrix product.
    for axis, length in enumerate(space):
        places = (torch.arange(length, device=device) * 2 + 1) / length - 1  # centres of the pixels
        line = columns[:, :, dims - 1 - axis, None] * places
        out = out + line.reshape(len(matrices), dims, *(length if other == axis else 1 for other in range(dims)))
    return out


def displacements(controls: Tensor, space: Sequence[int]) -> Tensor:
    """The smooth fields (N, S, *space) of control points (N, S, 7, ...), never larger than the largest of them.

    Cubic B-splines, one axis after the other (Rueckert et al. 1999).
    """
    field = controls
    for length in space:
        spline = _spline(length).to(controls.device)
        field = torch.tensordot(field, spline, dims=([2], [1]))  # drops an axis in front, adds one behind
    return field


def _spline(length: int) -> Tensor:
    """Weights (length, 7) of the control points at each of `length` positions; every row sums to 1."""
    place = torch.linspace(0, _CONTROLS - 3, length)[:, None]
    away = (place + 1 - torch.arange(_CONTROLS)).abs()
    return torch.where(away < 1, 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp_min(0) ** 3 / 6)

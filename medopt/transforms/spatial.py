"""Random geometry: flips, rotation, scale, shear, translation and elastic distortion in one interpolation.

Parameters are drawn apart from applying them, so that a drawing can be logged, tested and applied again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medopt.config import Augment

# Positions of the axes in torch's (x, y, z) grid order, for 2-D and 3-D alike.
_FLIP_AXIS = {"left_right": 0, "up_down": 1, "slice": 2}
_COARSE = 5  # control points an axis of the elastic field


@dataclass(frozen=True, slots=True)
class Geometry:
    """A drawn geometry: `matrix` (S, S + 1) in grid units (-1 to 1), `elastic` (S, 5, ...) displacements or None."""

    matrix: Tensor
    elastic: Tensor | None

    @property
    def is_identity(self) -> bool:
        """Whether applying it would change nothing."""
        dims = self.matrix.shape[0]
        return self.elastic is None and bool(torch.equal(self.matrix, torch.eye(dims, dims + 1)))


def draw_geometry(config: Augment, spatial_dims: int, random: np.random.Generator) -> Geometry:
    """Draw flips, rotation (degrees), scale, shear, translation (fractions) and elastic displacements.

    Each effect happens with the configured probability, flips with one half.
    """

    def chance() -> bool:
        return random.uniform() < config.probability

    matrix = torch.eye(spatial_dims)
    if config.rotate_degrees and chance():
        matrix = matrix @ _rotation(spatial_dims, config.rotate_degrees, random)
    if config.scale and chance():
        matrix = matrix * float(math.exp(random.uniform(-1, 1) * math.log1p(config.scale)))
    if config.shear and chance():
        shear = torch.eye(spatial_dims)
        shear[0, 1] = random.uniform(-config.shear, config.shear)
        matrix = matrix @ shear
    shift = torch.zeros(spatial_dims, 1)
    if config.translate and chance():
        # The grid spans 2 units over the extent.
        shift = torch.tensor(random.uniform(-2 * config.translate, 2 * config.translate, (spatial_dims, 1))).float()
    for name in config.flip:
        axis = _FLIP_AXIS[name]
        if axis < spatial_dims and random.uniform() < 0.5:
            matrix[axis] *= -1
    elastic = None
    if config.elastic and chance():
        drawn = random.uniform(-2 * config.elastic, 2 * config.elastic, (spatial_dims, *[_COARSE] * spatial_dims))
        elastic = torch.tensor(drawn).float()
    return Geometry(torch.cat([matrix, shift], dim=1), elastic)


def _rotation(spatial_dims: int, degrees: float, random: np.random.Generator) -> Tensor:
    out = torch.eye(spatial_dims)
    planes = [(0, 1)] if spatial_dims == 2 else [(0, 1), (0, 2), (1, 2)]
    for first, second in planes:
        angle = math.radians(random.uniform(-degrees, degrees))
        turn = torch.eye(spatial_dims)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        out = out @ turn
    return out


def apply_geometry(image: Tensor, geometry: Geometry) -> Tensor:
    """Resample (C, *space) once, linearly; what comes from outside is 0.

    The grid is scaled by the axes' lengths, so that a rotation of a non-square image is a rotation.
    """
    if geometry.is_identity:
        return image
    lengths = torch.tensor(list(reversed(image.shape[1:])), dtype=torch.float32)
    matrix = geometry.matrix.clone()
    matrix[:, :-1] *= lengths[None, :] / lengths[:, None]
    grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
    if geometry.elastic is not None:
        mode = "bilinear" if image.ndim == 3 else "trilinear"
        field = F.interpolate(geometry.elastic[None], size=image.shape[1:], mode=mode, align_corners=True)
        grid = grid + field.movedim(1, -1)
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]

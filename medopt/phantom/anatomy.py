"""The chest of a patient as absorbance (-ln of the transmission) along each ray.

Lengths, and thicknesses along the ray, are in mm. The attenuation coefficients are effective ones of a 110 kVp beam
including scatter, so that the contrast of lung, heart and ribs is about that of a chest radiograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from medopt.core.records import FloatArray
from medopt.phantom.bones import skeleton
from medopt.phantom.chest import BodyPose, Chest, bend, thorax_width
from medopt.phantom.projection import ProjectionGrid, Reals, stamp, tube

SOFT, BONE, LUNG_FILLING = 0.0165, 0.042, 0.24
"""Absorbance of 1 mm of soft tissue; what 1 mm of bone adds to it; the share of the lung that is not air."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A projected chest: `absorbance`, and the depth of the lungs in mm, both (rows, cols) on `grid`."""

    absorbance: FloatArray
    lungs: FloatArray
    grid: ProjectionGrid


def project_chest(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> Scene:
    """Project a patient in a pose."""
    rng = np.random.default_rng(chest.seed)
    middle = grid.x - bend(chest, grid.y)
    lungs = np.maximum(_lungs(chest, pose, grid) - _mediastinum(chest, pose, grid, middle), 0)
    texture = 1 + 0.06 * _clouds(rng, grid, 40) + 0.025 * _clouds(rng, grid, 12)
    vessels = gaussian_filter(_vessels(chest, rng, grid), 0.6 / grid.spacing)
    soft = _trunk(chest, pose, grid) - _airways(grid, middle)
    soft -= (1 - LUNG_FILLING) * lungs * texture - vessels * np.clip(lungs / 60, 0, 1)
    absorbance = SOFT * np.maximum(soft, 0) + BONE * chest.rib_mineral * skeleton(chest, pose, grid)
    return Scene(absorbance.astype(np.float32), lungs, grid)


def _step(value: Reals, softness: float) -> FloatArray:
    """0 to 1 across an edge, `softness` mm wide on either side, without corners."""
    t = np.clip(value / (2 * softness) + 0.5, 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def _trunk(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> FloatArray:
    """Thickness of the trunk, neck, shoulders and breasts."""
    x, y = grid.x, grid.y
    side = thorax_width(chest, np.maximum(y, -20)) + np.float32(chest.wall)
    shoulder = chest.apex - 62 + 0.30 * np.abs(x) + pose.arms * x / 200
    depth = np.float32(2 * chest.depth + 44) * (0.62 + 0.38 * _step(y - chest.apex - 10, 60))
    across = np.square(x / side)
    body = depth * np.sqrt(np.maximum(1 - across * across * across, 0) * _step(y - shoulder, 24))
    for sign in (-1, 1):
        arm = (sign * (chest.width + 42), chest.apex + 26 + sign * pose.arms)
        stamp(body, grid, arm, (88, 52), 115, turn=sign * 0.45, merge=np.maximum)
    stamp(body, grid, (0, chest.apex - 72), (58, 110), 118, merge=np.maximum)
    for sign in (-1, 1):
        stamp(body, grid, (sign * 0.56 * chest.width, 74), (66, 56), 0.9 * chest.breast)
    return body


def _lungs(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> FloatArray:
    """Depth of both lungs, without the mediastinum."""
    x, y = grid.x, grid.y
    width = np.maximum(thorax_width(chest, y), 1)
    across = np.sqrt(np.maximum(1 - (x / width) ** 2, 0))
    dome = chest.base + pose.breath - chest.right_dome * _step(-x, 30)
    lateral = np.abs(np.abs(x) - 0.42 * chest.width) / (0.58 * chest.width)
    below = dome + chest.dome_height * lateral ** np.float32(2.2) - y
    height = 0.86 * _step(below, 1.2) + 0.14 * _step(below + 26, 22)
    return 2 * np.float32(chest.depth - 8) * across * height * _step(y - chest.apex, 8)


def _mediastinum(chest: Chest, pose: BodyPose, grid: ProjectionGrid, middle: FloatArray) -> FloatArray:
    """How much lung the heart, the great vessels and the hila displace."""
    turned = 45 * np.sin(pose.yaw)
    hx, hy, half, turn = chest.heart
    column = chest.mediastinum + 7 * _step(-grid.y + chest.apex + 70, 50)
    mass = 2 * np.float32(chest.depth) * np.sqrt(np.maximum(1 - (middle / column) ** 2, 0))
    parts = (
        ((hx + turned, hy), (half * 1.25, half), 124, turn),
        ((-18 + turned, hy + 8), (34, 44), 100, 0.0),
        ((chest.mediastinum - 3 + turned / 2, -46), (chest.knob, chest.knob * 1.1), 76, 0.0),
        ((chest.mediastinum - 3 + turned / 2, -14), (15, 22), 60, 0.0),
    )
    for at, axes, peak, angle in parts:
        stamp(mass, grid, at, axes, peak, turn=angle, merge=np.maximum)
    for sign in (-1, 1):
        stamp(mass, grid, (sign * (chest.mediastinum + 8), 4 - 6 * sign), (15, 24), 26, turn=-0.3 * sign, power=0.8)
    return mass


def _airways(grid: ProjectionGrid, middle: FloatArray) -> FloatArray:
    """Air in the trachea and the two main bronchi."""
    trachea = 16 * np.sqrt(np.maximum(1 - (middle / 8.5) ** 2, 0)) * _step(-grid.y - 42, 5)
    fork = np.abs(np.abs(middle) - np.maximum(grid.y + 42, 0) * 0.8)
    return trachea + 11 * np.sqrt(np.maximum(1 - (fork / 7) ** 2, 0)) * _step(grid.y + 42, 5) * _step(2 - grid.y, 12)


def _vessels(chest: Chest, rng: np.random.Generator, grid: ProjectionGrid) -> FloatArray:
    """Pulmonary vessels: a tree from either hilum, each branch forking into two thinner ones."""
    count = 7
    side = np.repeat([-1.0, 1.0], count)
    x, y = side * (chest.mediastinum + 4), np.tile(np.linspace(-10, 16, count), 2)
    angle = np.tile(np.linspace(-1.25, 1.3, count), 2) + rng.normal(0, 0.12, 2 * count)
    radius = 3.9 * rng.uniform(0.7, 1.1, 2 * count) * chest.vessels**0.5
    total = grid.empty()
    for level in range(6):
        t = np.linspace(0, 1, 34 - 3 * level)
        length = 32 * 0.87**level * rng.uniform(0.7, 1.3, len(x))
        turned = angle[:, None] + rng.normal(0, 0.22, len(x))[:, None] * t
        step = length[:, None] / len(t)
        px = x[:, None] + side[:, None] * np.cumsum(np.cos(turned) * step, axis=1)
        py = y[:, None] + np.cumsum(np.sin(turned) * step, axis=1)
        total += tube(grid, px, py, radius[:, None] * (1 - 0.2 * t), across=5 if level < 3 else 3)
        fork = rng.uniform(0.2, 0.62, (2, len(x))) * np.array([[1.0], [-1.0]])
        x, y, side = np.tile(px[:, -1], 2), np.tile(py[:, -1], 2), np.tile(side, 2)
        angle, radius = (
            (turned[:, -1] + fork).ravel(),
            np.tile(radius * 0.74, 2) * rng.uniform(0.8, 1.1, 2 * len(radius)),
        )
    return total


def _clouds(rng: np.random.Generator, grid: ProjectionGrid, scale: float) -> FloatArray:
    """Smooth random field of unit variance with structures of about `scale` mm, (rows, cols)."""
    shape = int(grid.rows * grid.spacing / scale) + 3, int(grid.cols * grid.spacing / scale) + 3
    field = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
    return np.asarray(field.resize((grid.cols, grid.rows), Image.Resampling.BICUBIC))

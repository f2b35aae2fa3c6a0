"""The skeleton of the chest: ribs, clavicles, shoulder blades and spine, as thickness of bone along each ray in mm."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from medopt.core.records import FloatArray
from medopt.phantom.chest import BodyPose, Chest, bend, thorax_width
from medopt.phantom.projection import ProjectionGrid, tube


def skeleton(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> FloatArray:
    """All bones of a patient in a pose, (rows, cols)."""
    thin = _ribs(chest, pose, grid) + _shoulder_girdle(chest, pose, grid)
    return gaussian_filter(thin, 0.6 / grid.spacing) + _spine(chest, pose, grid)


def _ribs(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> FloatArray:
    """Ribs as flat tubes around an elliptic thorax: 3-D curves, so that they follow the rotation of the patient."""
    rng = np.random.default_rng(chest.seed + 1)
    pair = np.arange(chest.rib_pairs)[:, None]
    pitch = (chest.base + 20 - chest.apex) / (chest.rib_pairs - 0.6)
    theta = np.linspace(0.10, 1, 330)[None] * np.pi * (0.80 - 0.015 * pair)
    u = (np.arange(14) + 0.5) / 7 - 1
    wall = 1.1 / np.sqrt(1.07 - u**2) + 2.2 * np.sqrt(1 - u**2)
    image = grid.empty()
    for sign in (-1, 1):
        origin = chest.apex - 6 + pitch * pair + rng.normal(0, 1.2, pair.shape)
        drop = chest.rib_slope * (0.55 + 0.07 * pair.clip(0, 6)) * rng.normal(1, 0.03, pair.shape)
        width = thorax_width(chest, np.minimum(origin + 0.4 * drop, 90)) + 2
        y = origin + drop * (theta / np.pi) ** 1.25 - chest.rib_lift * np.sin(np.minimum(theta * 1.3, np.pi))
        x, z = sign * width * np.sin(theta), -0.66 * width * np.cos(theta)
        step = np.sqrt(sum(np.gradient(axis, axis=1) ** 2 for axis in (x, y, z)))
        half = chest.rib_height * np.minimum(1, 0.75 + 0.1 * pair) * (1 - 0.15 * theta / np.pi)
        volume = (half / 7 * step)[..., None] * wall / 2
        height = y[..., None] + u * half[..., None]
        for out in (-2.6, 2.6):
            seen = (x + sign * out * np.sin(theta)) * np.cos(pose.yaw) + z * np.sin(pose.yaw) + bend(chest, y)
            image += grid.splat(np.broadcast_to(seen[..., None], height.shape), height, volume)
    return image


def _shoulder_girdle(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> FloatArray:
    """Clavicles, S-shaped, and the inner border of the shoulder blades."""
    image = grid.empty()
    t = np.linspace(0, 1, 260)[None]
    for sign in (-1, 1):
        inner = sign * 20 + 80 * np.sin(pose.yaw)
        x = inner + (sign * (chest.width + 14) - inner) * t
        y = chest.apex + 36 - (38 - sign * pose.arms) * t + 8 * np.sin(2 * np.pi * t)
        image += 0.45 * tube(grid, x, y, 6.2 + 2.5 * (2 * t - 1) ** 2, across=16)
        blade = sign * (chest.width * (1.0 + 0.12 * t) - 12 * np.sin(np.pi * t))
        image += 0.5 * tube(grid, blade, chest.apex + 24 + 120 * (1 - t) + 2 * pose.arms * t, 2.4 + 0.8 * t, across=6)
    return image


def _spine(chest: Chest, pose: BodyPose, grid: ProjectionGrid) -> FloatArray:
    """Vertebral bodies with discs between them, pedicles and spinous processes."""
    image = grid.empty()
    behind = 78 * np.sin(pose.yaw)
    window = grid.window((-behind, 0.0), (40.0, 400.0))
    y = grid.y
    x = grid.x[:, window[1]] - bend(chest, y) + np.float32(behind)
    level = y / 24
    local = (level - np.round(level)) * 24
    bone = 7 * np.sqrt(np.maximum(1 - (x / 19) ** 4, 0)) * (0.85 + 0.2 * np.cos(2 * np.pi * level))
    for side in (-13, 13):
        bone += 4 * np.maximum(1 - ((x - side) / 4) ** 2 - ((local - 3) / 6) ** 2, 0)
    image[:, window[1]] = bone + 4 * np.maximum(1 - (x / 3.5) ** 2 - ((local + 5) / 8) ** 2, 0)
    return image

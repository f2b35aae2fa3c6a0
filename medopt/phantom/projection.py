"""Parallel projection of a body onto a grid of rays: how much of it lies along each ray.

Body coordinates are millimetres from the middle of the chest: x toward the image's right (the patient's left), y
downward, z toward the detector (a postero-anterior view: the chest faces it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import FloatArray

Points = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class ProjectionGrid:
    """Rays through the body: `rows` x `cols` of them, `spacing` mm apart, the body moved by `shift` mm (x, y)."""

    rows: int
    cols: int
    spacing: float
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def x(self) -> FloatArray:
        """Body x of each column, (1, cols)."""
        return ((np.arange(self.cols)[None] - (self.cols - 1) / 2) * self.spacing - self.shift[0]).astype(np.float32)

    @property
    def y(self) -> FloatArray:
        """Body y of each row, (rows, 1)."""
        return ((np.arange(self.rows)[:, None] - (self.rows - 1) / 2) * self.spacing - self.shift[1]).astype(np.float32)

    def empty(self) -> FloatArray:
        """A map of zeros, (rows, cols)."""
        return np.zeros((self.rows, self.cols), np.float32)

    def window(self, at: tuple[float, float], reach: tuple[float, float]) -> tuple[slice, slice]:
        """Rows and columns within `reach` mm (x, y) of a position in mm."""
        row = (at[1] + self.shift[1]) / self.spacing + (self.rows - 1) / 2
        col = (at[0] + self.shift[0]) / self.spacing + (self.cols - 1) / 2
        high, wide = reach[1] / self.spacing, reach[0] / self.spacing
        return _slice(row - high, row + high, self.rows), _slice(col - wide, col + wide, self.cols)

    def splat(self, x: Points, y: Points, volume: Points) -> FloatArray:
        """Spread small volumes (mm^3) over the nearest four rays: thickness in mm, (rows, cols)."""
        col = (x.ravel() + self.shift[0]) / self.spacing + (self.cols - 1) / 2
        row = (y.ravel() + self.shift[1]) / self.spacing + (self.rows - 1) / 2
        inside = (row >= 0) & (row < self.rows - 1) & (col >= 0) & (col < self.cols - 1)
        row, col, weight = row[inside], col[inside], volume.ravel()[inside] / self.spacing**2
        top, left = row.astype(np.intp), col.astype(np.intp)
        down, right = row - top, col - left
        upper, lower, first = weight * (1 - down), weight * down, top * self.cols + left
        corners = (
            (0, upper * (1 - right)),
            (1, upper * right),
            (self.cols, lower * (1 - right)),
            (self.cols + 1, lower * right),
        )
        total = sum(np.bincount(first + step, share, minlength=self.rows * self.cols) for step, share in corners)
        return np.asarray(total, np.float32).reshape(self.rows, self.cols)


def stamp(
    image: FloatArray,
    grid: ProjectionGrid,
    at: tuple[float, float],
    half: tuple[float, float],
    peak: float,
    *,
    turn: float = 0.0,
    power: float = 0.5,
    merge: np.ufunc = np.add,
) -> None:
    """Add (or `merge`) a projected ellipsoid to an image in place: `peak` * (1 - r^2)^power.

    `half` are the half-axes in the image plane in mm, `turn` the angle of the first. With power 0.5 the peak is the
    whole thickness of a solid ellipsoid; a larger power softens its edge, a smaller one makes a plate.
    """
    window = grid.window(at, (max(half), max(half)))
    u, v = grid.x[:, window[1]] - np.float32(at[0]), grid.y[window[0]] - np.float32(at[1])
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    inside = 1 - ((c * u + s * v) / np.float32(half[0])) ** 2 - ((c * v - s * u) / np.float32(half[1])) ** 2
    image[window] = merge(image[window], np.float32(peak) * np.maximum(inside, 0) ** np.float32(power))


def tube(grid: ProjectionGrid, x: Points, y: Points, radius: Points, across: int = 7) -> FloatArray:
    """Thickness (rows, cols) in mm of solid tubes along polylines in the image plane.

    `x`, `y` and `radius` are (N, P): N polylines of P points, evenly spaced in mm.
    """
    dx, dy = np.gradient(x, axis=1), np.gradient(y, axis=1)
    length = np.hypot(dx, dy) + 1e-9
    u = (np.arange(across) + 0.5) / across * 2 - 1
    offset = u * radius[..., None]
    volume = 2 * radius[..., None] * np.sqrt(1 - u**2) * (2 * radius / across * length)[..., None]
    return grid.splat(
        x[..., None] - offset * (dy / length)[..., None], y[..., None] + offset * (dx / length)[..., None], volume
    )


def polyline(corners: list[tuple[float, float]], points: int) -> tuple[Points, Points]:
    """`points` evenly spaced points (1, points) along straight strokes from corner to corner."""
    at = np.asarray(corners, dtype=float)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(at, axis=0).T))])
    steps = np.linspace(0, along[-1], points)
    return np.interp(steps, along, at[:, 0])[None], np.interp(steps, along, at[:, 1])[None]


def _slice(low: float, high: float, size: int) -> slice:
    return slice(min(max(int(low), 0), size), min(max(int(high) + 2, 0), size))

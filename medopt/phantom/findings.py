"""What is in a chest beside its anatomy: the nodule, which is the finding, and distractors that look a little like it.

Distractors are drawn in both classes, so that "something round and bright" does not answer the question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from medopt.core.records import FloatArray
from medopt.phantom.anatomy import Scene
from medopt.phantom.chest import Chest
from medopt.phantom.projection import polyline, stamp, tube

# Larger and denser than most real nodules, as if calcified: 260 training images have to be enough for a network without
# pretraining, while a thumbnail must not be enough.
NODULE_RADIUS_MM = (13.0, 23.0)
NODULE_DENSITY = (1.8, 3.0)
NODULE_ABSORBANCE = 0.0165
"""Absorbance that 1 mm of a nodule of density 1 adds where it displaces lung."""

LETTERS = {
    "L": [[(0, 0), (0, 20), (11, 20)]],
    "R": [[(0, 20), (0, 0), (8, 0), (11, 3), (11, 7), (8, 10), (0, 10)], [(5, 10), (11, 20)]],
}


@dataclass(frozen=True, slots=True)
class Nodule:
    """One nodule: its place as fractions of the lungs, its radius in mm, density, edge and lobes."""

    place: tuple[float, float]
    radius: float
    density: float
    edge: float
    lobes: tuple[float, float, float]


def draw_nodule(rng: np.random.Generator) -> Nodule:
    """Draw the nodule of a patient; it is the same in each image of the patient."""
    return Nodule(
        place=(rng.uniform(), rng.uniform()),
        radius=rng.uniform(*NODULE_RADIUS_MM),
        density=rng.uniform(*NODULE_DENSITY),
        edge=rng.uniform(0.5, 1.1),
        lobes=(rng.uniform(0, 0.14), rng.uniform(0, 0.07), rng.uniform(0, 2 * np.pi)),
    )


def add_nodule(absorbance: FloatArray, nodule: Nodule, chest: Chest, scene: Scene) -> None:
    """Add a nodule, in place, where there is enough lung; ribs, vessels and the edge of the heart may cover a part."""
    grid = scene.grid
    room = gaussian_filter(scene.lungs, 0.8 * nodule.radius / grid.spacing)
    rows, cols = np.nonzero(room > min(1.15 * (chest.depth - 8), 0.9 * room.max()))
    row = int(np.quantile(rows, nodule.place[0], method="nearest"))
    choices = cols[rows == row]
    at = float(grid.x[0, choices[int(nodule.place[1] * (len(choices) - 1))]]), float(grid.y[row, 0])
    window = grid.window(at, (1.3 * nodule.radius, 1.3 * nodule.radius))
    u, v = grid.x[:, window[1]] - at[0], grid.y[window[0]] - at[1]
    angle = np.arctan2(v, u)
    second, third, phase = nodule.lobes
    radius = nodule.radius * (1 + second * np.cos(2 * angle + phase) + third * np.cos(3 * angle - phase))
    inside = np.maximum(1 - (u**2 + v**2) / radius**2, 0)
    absorbance[window] += 2 * nodule.radius * nodule.density * NODULE_ABSORBANCE * inside**nodule.edge


def add_distractors(absorbance: FloatArray, rng: np.random.Generator, chest: Chest, scene: Scene) -> None:
    """Add vessels seen end-on, calcified dots, nipples, electrodes and the side marker, in place."""
    for _ in range(rng.integers(2, 7)):
        at = rng.choice((-1, 1)) * (chest.mediastinum + rng.uniform(10, 50)), rng.uniform(-40, 60)
        _disc(absorbance, scene, at, rng.uniform(1.8, 3.6), rng.uniform(0.05, 0.11))
    if rng.uniform() < 0.4:
        for _ in range(rng.integers(1, 4)):
            at = rng.uniform(-0.8, 0.8) * chest.width, rng.uniform(-90, 70)
            _disc(absorbance, scene, at, rng.uniform(1.5, 4.0), rng.uniform(0.15, 0.5))
    if rng.uniform() < 0.35:
        height, apart, size = rng.uniform(45, 80), rng.uniform(0.5, 0.66), rng.uniform(4.0, 6.5)
        for side in (-1, 1):
            at = side * apart * chest.width, height + rng.normal(0, 5)
            _disc(absorbance, scene, at, size, rng.uniform(0.06, 0.13))
    metal = scene.grid.empty()
    if rng.uniform() < 0.3:
        _electrodes(metal, rng, chest, scene)
    _marker(metal, rng, scene)
    absorbance += gaussian_filter(metal, 0.4 / scene.grid.spacing)


def _disc(
    image: FloatArray, scene: Scene, at: tuple[float, float], radius: float, peak: float, power: float = 0.6
) -> None:
    stamp(image, scene.grid, at, (radius, radius), peak, power=power)


def _electrodes(metal: FloatArray, rng: np.random.Generator, chest: Chest, scene: Scene) -> None:
    """Two to four ECG electrodes, each with a snap and a lead that leaves the image."""
    for _ in range(rng.integers(2, 5)):
        at = rng.choice((-1, 1)) * rng.uniform(0.35, 0.95) * chest.width, rng.uniform(-95, 90)
        _disc(metal, scene, at, rng.uniform(6, 10), rng.uniform(0.06, 0.16), power=0.15)
        _disc(metal, scene, at, 2.6, 1.1, power=0.2)
        px, py = polyline([at, (at[0] * rng.uniform(0.6, 1.5), rng.choice((-260, 260)))], 500)
        sway = rng.uniform(-22, 22) * np.sin(np.linspace(0, rng.uniform(2, 5), px.size))[None]
        metal += 0.35 * tube(scene.grid, px + sway, py, np.full_like(px, 0.8), across=3)


def _marker(metal: FloatArray, rng: np.random.Generator, scene: Scene) -> None:
    """The lead letter of the technologist, in the upper corner of its side."""
    letter = "LR"[rng.integers(2)]
    edge = float(scene.grid.x[0, -1] if letter == "L" else scene.grid.x[0, 0])
    x, y = edge * (1 - rng.uniform(0.2, 0.26)) - 5, rng.uniform(-175, -125)
    for stroke in LETTERS[letter]:
        px, py = polyline([(x + dx, y + dy) for dx, dy in stroke], 120)
        metal += 0.9 * tube(scene.grid, px, py, np.full_like(px, 1.3), across=5)

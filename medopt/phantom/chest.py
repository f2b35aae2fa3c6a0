"""The patient in front of the detector: what differs between patients, and between the images of one patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medopt.core.records import FloatArray
from medopt.phantom.projection import Reals


@dataclass(frozen=True, slots=True)
class Chest:
    """One patient: all that is the same in each image. Lengths in mm."""

    seed: int
    """Seed of what is drawn again for each image and must be the same: vessels, irregular ribs, lung texture."""
    width: float
    """Inner half-width of the thorax."""
    apex: float
    base: float
    """y of the top of the lungs and of the left dome of the diaphragm."""
    depth: float
    """Inner half-depth of the thorax."""
    wall: float
    right_dome: float
    """How much higher the right dome is."""
    dome_height: float
    rib_pairs: int
    rib_slope: float
    """Fall of a middle rib from its spinal to its sternal end."""
    rib_lift: float
    """How far ribs rise before they fall: their curvature."""
    rib_height: float
    rib_mineral: float
    scoliosis: float
    scoliosis_phase: float
    heart: tuple[float, float, float, float]
    """Centre x and y, short half-axis, and the angle of the long one in radian."""
    knob: float
    """Radius of the aortic knob."""
    mediastinum: float
    vessels: float
    breast: float


@dataclass(frozen=True, slots=True)
class BodyPose:
    """How the patient stood and breathed for one image: angles in radian, lengths in mm."""

    yaw: float
    roll: float
    shift: tuple[float, float]
    breath: float
    arms: float


def draw_chest(rng: np.random.Generator, sex: str) -> Chest:
    """Draw a patient; women have the smaller chest on average."""
    size = rng.normal(1.03 if sex == "M" else 0.96, 0.045)
    return Chest(
        seed=int(rng.integers(2**31)),
        width=141 * size * rng.uniform(0.95, 1.05),
        apex=-142 * size * rng.uniform(0.94, 1.06),
        base=108 * size + rng.uniform(-10, 20),
        depth=92 * size * rng.uniform(0.85, 1.1),
        wall=rng.uniform(14, 36),
        right_dome=rng.uniform(-2, 20),
        dome_height=rng.uniform(26, 48),
        rib_pairs=int(rng.integers(9, 12)),
        rib_slope=rng.uniform(75, 130),
        rib_lift=rng.uniform(2, 24),
        rib_height=rng.uniform(5.4, 7.6),
        rib_mineral=rng.uniform(0.7, 1.3),
        scoliosis=rng.normal(0, 5),
        scoliosis_phase=rng.uniform(-1, 1),
        heart=(rng.uniform(16, 34), rng.uniform(58, 78), rng.uniform(46, 64), rng.uniform(0.3, 0.8)),
        knob=rng.uniform(12, 21),
        mediastinum=rng.uniform(23, 33),
        vessels=rng.uniform(0.75, 1.3),
        breast=rng.uniform(4, 28) if sex == "F" else rng.uniform(0, 5),
    )


def draw_pose(rng: np.random.Generator) -> BodyPose:
    """Draw how one image of a patient was taken."""
    return BodyPose(
        yaw=rng.normal(0, 0.05),
        roll=float(np.clip(rng.normal(0, 0.02), -0.05, 0.05)),
        shift=(rng.normal(0, 6), rng.normal(6, 7)),
        breath=rng.normal(0, 6),
        arms=rng.uniform(-12, 12),
    )


def thorax_width(chest: Chest, y: Reals) -> FloatArray:
    """Inner half-width of the thorax at a height: a dome above, nearly straight below."""
    middle = 40.0
    up = np.clip((middle - y) / (middle - (chest.apex - 8)), 0, 1)
    down = np.clip((y - middle) / 120, 0, 2)
    return np.float32(chest.width) * ((1 - up**2.5) ** (1 / 2.1) * (1 - 0.06 * down**2)).astype(np.float32)


def bend(chest: Chest, y: Reals) -> FloatArray:
    """Sideways deviation (mm) of the spine and of what is attached to it: scoliosis."""
    return np.asarray(chest.scoliosis * np.sin(y / 75 + chest.scoliosis_phase), np.float32)

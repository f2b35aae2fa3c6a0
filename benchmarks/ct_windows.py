"""CT in one range of HU, or in a reader's windows as channels: test AUC for a faint lesion in soft tissue.

    python benchmarks/ct_windows.py [--seeds 3] [--images 400] [--contrast 100]

Drawn slices of 96 x 96 pixels: soft tissue of 40 HU with two lungs and a spine, noise of 20 HU; half have a disc of 8
pixels' diameter in the soft tissue. The range is what `medopt plan` takes of such scans without windows (-1000 to
900 HU), the windows are its own. Network, recipe and drawn images are the same; 300 more images are the test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tiles import area, study_of

from medopt.config import Intensity, Study
from medopt.core.provenance import machine
from medopt.core.records import Case, Volume
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.planning.decide import WINDOWS
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.loop import load_best
from medopt.transforms.prepare import LEVELS, PrepareChain

SIDE = 96
MAPPINGS = {
    "one range": Intensity(method="range", low=-1000, high=900),
    "windows": Intensity.model_validate({"method": "windows", "windows": WINDOWS}),
}


def draw(index: int, contrast: float) -> tuple[NDArray[np.float32], int]:
    """A slice (1, H, W) in HU and its label."""
    random, label = np.random.default_rng((11, index)), index % 2
    down, across = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2 + random.normal(0, 2, (2, 1, 1))
    body = (down / 40) ** 2 + (across / 45) ** 2 < 1
    lungs = [(down / 24) ** 2 + ((across - side) / 13) ** 2 < 1 for side in (-22, 22)]
    spine = np.hypot(down - 28, across) < 7
    image = np.where(body, 40 + 8 * gaussian_filter(random.standard_normal((SIDE, SIDE)), 4) / 0.07, -1000.0)
    for lung in lungs:
        image[lung] = -820
    image[spine] = random.normal(600, 150, (SIDE, SIDE))[spine]
    if label:
        free = body & ~lungs[0] & ~lungs[1] & ~spine & ((down / 34) ** 2 + (across / 39) ** 2 < 1)
        row, column = random.choice(np.argwhere(free))
        disc = np.hypot(*(np.mgrid[:SIDE, :SIDE] - np.array([row, column])[:, None, None])) < 4
        image += contrast * (disc & free)
    return (image + random.normal(0, 20, (SIDE, SIDE)))[None].astype(np.float32), label


def prepared(folder: Path, chain: PrepareChain, split: str, rows: range, contrast: float) -> PreparedSplit:
    """The slices as the cache stores them."""
    folder.mkdir(exist_ok=True)
    cases, files = [], []
    for index in rows:
        image, label = draw(index, contrast)
        tensor = chain(Volume(image, np.eye(4), (1.0, 1.0), "CT"))
        files.append(folder / f"{index}.npy")
        np.save(files[-1], np.rint(tensor.numpy() * LEVELS).astype(np.uint16))
        cases.append(Case(str(index), str(index), files[-1].name, (label,), split))  # type: ignore[arg-type]
    return PreparedSplit(cases, files)


def one_training(name: str, seed: int, folder: Path, arguments: argparse.Namespace) -> float:
    """Train on slices of one mapping, and print the test AUC with its interval."""
    recipe = {"batch_size": 16, "epochs": arguments.epochs, "patience": arguments.epochs, "keep": "last"}
    study = study_of([SIDE, SIDE], {"depth": 14, "width": 0.25}, **recipe)
    sections = {"prepare": {"size": [SIDE, SIDE], "intensity": MAPPINGS[name].model_dump()}, "seed": seed}
    study = Study.model_validate(study.model_dump() | sections)
    chain, first, splits = PrepareChain(study.prepare), 0, {}
    for split, count in (("train", arguments.images), ("val", 60), ("test", 300)):
        splits[split] = prepared(folder / name, chain, split, range(first, first + count), arguments.contrast)
        first += count

    def score(logits: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        return float(auc_with_covariance(logits, truth, np.arange(len(truth))).value[0])

    job = TrainingJob(study, splits["train"], splits["val"], folder / f"{name}-{seed}", {})
    logits, truth = area(load_best(study, train(job, TrainingCallbacks(score)).weights), splits["test"])
    auc: Any = mean_auc(auc_with_covariance(logits, truth, np.arange(len(truth))), len(truth), 0.95)
    print(f"{name:10} seed {seed}  AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})", flush=True)
    return float(auc.value)


def main() -> None:
    """Train both, seed by seed, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400, help="training images")
    parser.add_argument("--contrast", type=float, default=100, help="of the lesion, in HU")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in MAPPINGS:
            found = [one_training(name, seed, Path(folder), arguments) for seed in range(arguments.seeds)]
            print(f"{name:10} mean {statistics.mean(found):.3f}", flush=True)
    print(machine())


if __name__ == "__main__":
    main()

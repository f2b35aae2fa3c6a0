"""What covariates bring where the truth is known: the image tells a part of the label, a column of the table the other.

    python benchmarks/covariates.py --patients 1200 --seeds 3

A spot's brightness b and a column x are independent, each normal; the label is drawn with the log odds 1.6 (b + x). An
image shows b in noise. So the image alone, the column alone and both together have a best AUC that can be computed:
that of b, of x and of b + x. `shuffled` puts other patients' cells into the column, `missing` empties 30 % of them in
all splits. Each row is a whole run of medopt; its figures are those of its test split.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from medopt.config.study_file import load_study
from medopt.core.format import format_difference, format_estimate
from medopt.core.records import Override
from medopt.core.reporter import SilentReporter
from medopt.evaluation.run_metrics import RunMetrics
from medopt.pipeline.run import run_study

Floats = NDArray[np.float64]
SLOPE, SIDE, NOISE = 1.6, 24, 12
SPLITS = ("train",) * 5 + ("val",) * 2 + ("test",) * 3


def draw(folder: Path, patients: int, seed: int, column: str) -> dict[str, float]:
    """Write images and manifest; returns the best AUC of the test split that is possible of each kind."""
    random = np.random.default_rng(seed)
    bright, value = random.standard_normal((2, patients))
    label = random.random(patients) < 1 / (1 + np.exp(-SLOPE * (bright + value)))
    told = random.permutation(value) if column == "shuffled" else value
    empty = random.random(patients) < (0.3 if column == "missing" else 0)
    split = np.array([SPLITS[at % len(SPLITS)] for at in range(patients)])
    (folder / "scans").mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient_id", "label", "split", "marker"])
        for at in range(patients):
            Image.fromarray(picture(float(bright[at]), random)).save(folder / "scans" / f"{at}.png")
            cell = "" if empty[at] else f"{told[at]:.4f}"
            writer.writerow([f"{at}.png", f"P{at}", ("no", "yes")[int(label[at])], split[at], cell])
    test = split == "test"
    return {
        "image": float(roc_auc_score(label[test], bright[test])),
        "covariates": float(roc_auc_score(label[test], value[test])),
        "both": float(roc_auc_score(label[test], (bright + value)[test])),
    }


def picture(brightness: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """(SIDE, SIDE): a spot somewhere that is as bright, in noise."""
    down, across = np.mgrid[:SIDE, :SIDE] - random.integers(8, SIDE - 8, 2)[:, None, None]
    spot = np.exp(-(down**2 + across**2) / 18)
    image = 70 + (60 + 25 * brightness) * spot + NOISE * random.standard_normal((SIDE, SIDE))
    return np.clip(image, 0, 255).astype(np.uint8)


def study_of(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """A small network, without what takes time and is not looked at here."""
    return {
        "name": name,
        "question": "Is the finding there?",
        "seed": seed,
        "data": {"manifest": "manifest.csv", "root": "scans", "labels": ["no", "yes"], "covariates": ["marker"]},
        "prepare": {"size": [SIDE, SIDE], "intensity": {"method": "range", "low": 0, "high": 255}},
        "augment": {"brightness": 0, "contrast": 0, "gamma": 0},
        "model": {"depth": 14, "width": 0.125, "stem": "small"},
        "training": {"epochs": epochs, "batch_size": 32, "optimizer": {"lr": 0.002}},
        "evaluation": {"bootstrap": 200, "shift_cases": 0, "explain": 0},
        "domain": {"enabled": False},
        "compression": {"engines": ["onnxruntime"], "threads": 1, "gate": {"min_speedup": 0}},
    }


def one_run(patients: int, seed: int, column: str, epochs: int) -> tuple[dict[str, float], RunMetrics]:
    """A whole run, and the best that was possible."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        best = draw(folder, patients, seed, column)
        path = folder / "drawn.yaml"
        path.write_text(yaml.safe_dump(study_of("drawn", seed, epochs)))
        done = run_study(
            load_study(path), path, folder, folder / "runs", SilentReporter(),
            override=Override.now("A. Benchmark", "the figures are looked at"),
        )  # fmt: skip
        return best, done.metrics


def main() -> None:
    """Run and print a row for each column and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--columns", nargs="+", default=["as it is", "missing", "shuffled"])
    arguments = parser.parse_args()
    print("| column | seed | image alone | covariates alone | both | both less image | both less covariates | best |")
    print("|---|---|---|---|---|---|---|---|")
    for column in arguments.columns:
        for seed in range(arguments.seeds):
            best, metrics = one_run(arguments.patients, seed, column, arguments.epochs)
            assert metrics.baselines is not None
            image, table = (metrics.baselines.models[name] for name in ("image", "covariates"))
            shown = [format_estimate(one) for one in (image.auc, table.auc, metrics.test.float.auc)]
            gains = [format_difference(one.gain) for one in (image, table)]
            limits = " / ".join(f"{best[name]:.3f}" for name in ("image", "covariates", "both"))
            print(f"| {column} | {seed} | {' | '.join([*shown, *gains])} | {limits} |", flush=True)


if __name__ == "__main__":
    main()

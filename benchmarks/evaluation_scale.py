"""How long does `medopt evaluate` take on a table of one million predictions, and how much memory?

    python benchmarks/evaluation_scale.py [--rows 1000000]

Two images a patient, three sites, two sexes; 2000 resamples of patients for every figure that needs them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from medopt.core.records import Predictions
from medopt.evaluation.predictions_io import write_predictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.pipeline.reevaluate import evaluate_table, open_table


def drawn(rows: int) -> Predictions:
    """A fifth of the patients for validation, the others for the test."""
    random, owner = np.random.default_rng(0), np.arange(rows) // 2
    sick = (random.random(rows) < 0.3)[owner].astype(np.int64)
    score = 1.8 * sick + 0.7 * random.normal(size=rows)[owner] + 0.7 * random.normal(size=rows) - 1
    return Predictions(
        "model",
        np.array([f"{row:016x}" for row in range(rows)]),
        np.array([f"{one:016x}" for one in owner]),
        np.array(["a", "b", "c"])[random.integers(3, size=rows)],
        np.where(owner % 5 == 0, "val", "test"),
        sick,
        score[:, None],
        {"sex": np.array(["F", "M", ""])[random.integers(3, size=rows)]},
    )


def main() -> None:
    """Print seconds and the largest memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        write_predictions(path, [drawn(rows)], ["no", "yes"], "binary", {"model": UNCALIBRATED})
        started = time.perf_counter()
        table = open_table(path)
        read = time.perf_counter()
        evaluate_table(table, "test")
        done = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows} predictions: read {read - started:.1f} s, evaluated {done - read:.1f} s, {memory:.2f} GiB")


if __name__ == "__main__":
    main()

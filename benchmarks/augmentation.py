"""Milliseconds an image of augmentation on one CPU thread: batches of 32, and the same images one at a time.

    python benchmarks/augmentation.py [--json] [--repeats 15]

Drawing is counted with applying; the rounds are interleaved, and their medians are told.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from loading import interleaved
from rich.console import Console
from rich.table import Table

from medopt.config import Augment
from medopt.core.provenance import machine
from medopt.transforms.augment import apply, draw

CASES: dict[str, tuple[Augment, tuple[int, ...], int]] = {
    "224 x 224, default": (Augment(), (1, 224, 224), 32),
    "224 x 224, shift: radiograph": (Augment(shift="radiograph"), (1, 224, 224), 32),
    "96 x 96 x 96, default": (Augment(), (1, 96, 96, 96), 8),
}


def work(config: Augment, images: torch.Tensor, at_once: int) -> Callable[[], None]:
    """Draw and apply, `at_once` images at a time."""

    def run() -> None:
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once]
            random = (np.random.default_rng((0, 0, start + row)) for row in range(len(part)))
            apply(part, [draw(config, images.ndim - 2, one) for one in random])

    return run


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image of each case, in a batch and alone."""
    found = {}
    for name, (config, shape, count) in CASES.items():
        images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
        works = {"batch": work(config, images, count), "alone": work(config, images, 1)}
        times = interleaved(works, repeats)
        found[name] = {kind: statistics.median(values) / count for kind, values in times.items()}
    return found


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--repeats", type=int, default=15)
    words = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = measure(words.repeats)
    table = Table("", "in a batch", "alone", title="milliseconds an image", title_justify="left")
    for name, times in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in times.values()))
    Console().print(table)
    if words.json:
        print(json.dumps({"ms_an_image": found, "machine": asdict(machine())}, default=str))


if __name__ == "__main__":
    main()

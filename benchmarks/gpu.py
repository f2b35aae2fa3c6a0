"""Images a second of medopt's training loop on a CUDA GPU, against the bare step there, and the memory that both take.

    python benchmarks/gpu.py [--json] [--images 256] [--rounds 5] [--epochs 2] [--batch 64] [--side 224] [--workers 8]

The loops are those of benchmarks/training.py, in bf16-mixed and in float32. Exit code 2 without a GPU;
`--accelerator cpu` tries the same code on a CPU, where neither the speeds nor the memory say anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from training import BARE, OURS, PEERS, Arena, contest, make_study, ratio

from medopt.core.provenance import machine


def measure(words: argparse.Namespace, precision: str, folder: Path) -> dict[str, Any]:
    """Both loops in one precision; the memory is the most that each has allocated."""
    study = make_study(words.side, words.batch, precision, words.accelerator)
    training = study.training.model_copy(update={"workers": words.workers})
    arena = Arena.draw(study.model_copy(update={"training": training}), words.images, folder / precision)
    found = contest(arena, {name: PEERS[name] for name in (BARE, OURS)}, words.rounds, words.epochs)
    speeds = found["images_per_second"]
    return {
        "precision": precision,
        "images_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "fraction_of_bare": ratio(speeds[OURS], speeds[BARE]),
        "peak_gib": {name: _peak(arena, name, words.accelerator == "cuda") for name in (BARE, OURS)},
    }


def _peak(arena: Arena, name: str, cuda: bool) -> float:
    """GiB of the GPU's memory that an epoch of a fresh loop takes; 0 without a GPU."""
    if not cuda:
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    PEERS[name](arena)()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda")
    for name, default in (
        ("images", 256), ("rounds", 5), ("epochs", 2), ("batch", 64), ("side", 224), ("workers", 8),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    words = parser.parse_args()
    if words.accelerator == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA GPU here; --accelerator cpu tries the same code on the processor.", file=sys.stderr)
        sys.exit(2)
    device = torch.cuda.get_device_name() if words.accelerator == "cuda" else machine().cpu
    folder = Path(tempfile.mkdtemp(prefix="medopt-gpu-"))
    try:
        found = [measure(words, precision, folder) for precision in ("bf16-mixed", "32-true")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    title = f"ResNet-50 at {words.side}, batches of {words.batch}, {device}"
    table = Table("", "bare, images/s", "medopt, images/s", "of the bare loop", "GiB, bare and medopt", title=title)
    for one in found:
        share, speed, peak = one["fraction_of_bare"], one["images_per_second"], one["peak_gib"]
        times = f"{share['median']:.1%} ({share['least']:.1%} to {share['most']:.1%})"
        memory = f"{peak[BARE]:.2f}, {peak[OURS]:.2f}"
        table.add_row(one["precision"], f"{speed[BARE]:.1f}", f"{speed[OURS]:.1f}", times, memory)
    Console().print(table)
    if words.json:
        print(json.dumps({"device": device, "workers": words.workers, "measured": found, "machine": asdict(machine())}))


if __name__ == "__main__":
    main()

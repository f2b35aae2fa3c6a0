"""What averages bring: of both mirror images, of seeds, of snapshots of one training, and distilled into one network.

    python benchmarks/averages.py breastmnist --data DATA [--folds 4] [--seeds 3]

Folds of the training and validation images, near-duplicates and the images of one patient together; never the test
split. Everything is trained from scratch with the study's recipe. A snapshot is what a cycle of `cosine_restarts` ends
with; the cycles of a training together are as long as the recipe. "Networks" counts those that answer an image.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transfer import folds_of

from medopt.config import Schedule, Study
from medopt.config.shipped import study_path
from medopt.config.study_file import load_study
from medopt.core.provenance import machine
from medopt.core.records import label_table
from medopt.core.reporter import SilentReporter
from medopt.data.cache import PreparedCache, load_prepared
from medopt.metrics.weighted import auc
from medopt.pipeline.predict import validation_score
from medopt.pipeline.study_cases import read_source
from medopt.training.checkpoint import read_tensors, write_tensors
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.loop import TEACHERS, fit, load_best
from medopt.transforms.prepare import PrepareChain

CYCLES = 3
NETWORKS = {
    "one network": 1, "one network, both mirror images": 2, "seeds": 0, "seeds, both mirror images": 0,
    "seeds distilled into one network": 1, "snapshots": CYCLES, "mean weights of the snapshots": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fold:
    """A fold's images to train on and to score, and the folder of its trainings."""

    train: PreparedSplit
    held: PreparedSplit
    folder: Path

    def trained(self, study: Study, name: str, teacher: Path | None = None) -> Path:
        """The weights of a training, which goes on where an earlier one of this name ended."""
        job = TrainingJob(study, self.train, self.held, self.folder / name, {}, teacher=teacher, teacher_share=0.5)
        callbacks = TrainingCallbacks(validation_score(study, self.held))
        return fit(job, open_fabric(study.training), callbacks).weights

    def images(self, part: PreparedSplit) -> Tensor:
        """(N, C, *size)."""
        return torch.from_numpy(np.stack([load_prepared(path) for path in part.files]))

    @torch.no_grad()
    def logits(self, network: nn.Module) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) of the scored images as they are, and the mean with their mirror images."""
        images = self.images(self.held)
        plain, other = network(images)[:, 0], network(images.flip(-1))[:, 0]
        return plain.double().numpy(), ((plain + other) / 2).double().numpy()


def with_training(study: Study, **changes: object) -> Study:
    """The study with other settings of training; the last epoch is kept."""
    return study.model_copy(update={"training": study.training.model_copy(update={"keep": "last", **changes})})


def snapshots(study: Study, fold: Fold, seed: int) -> list[Path]:
    """The weights at the end of each cycle of one training."""
    length, found = study.training.epochs // CYCLES, []
    schedule = Schedule(name="cosine_restarts", t_0=length, t_mult=1)
    for cycle in range(1, CYCLES + 1):
        weights = fold.trained(with_training(study, epochs=cycle * length, schedule=schedule), f"cycles{seed}")
        kept = weights.with_name(f"cycle{cycle}.safetensors")
        kept.write_bytes(weights.read_bytes())
        found.append(kept)
    return found


@torch.no_grad()
def mean_weights(study: Study, fold: Fold, files: Sequence[Path]) -> nn.Module:
    """One network of the mean weights, its batch statistics measured anew (Izmailov et al. 2018)."""
    states = [read_tensors(file)[0] for file in files]
    network = load_best(study, files[-1])
    network.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            for name, value in network.state_dict().items()
        }
    )
    for one in network.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            one.reset_running_stats()
            one.momentum = None  # all batches alike
    network.train()
    for batch in fold.images(fold.train).split(int(study.training.batch_size)):
        if len(batch) > 1:
            network(batch)
    return network.eval()


def score_fold(study: Study, fold: Fold, seeds: int) -> dict[str, list[float]]:
    """AUC on the scored images by what answers, and under "s" the seconds of its trainings."""
    truth = label_table(fold.held.cases)[:, 0]
    found: dict[str, list[float]] = {name: [] for name in NETWORKS}

    def add(name: str, logits: NDArray[np.float64]) -> None:
        found[name].append(float(auc(logits, truth)[0]))

    members, mirrored, files = [], [], []
    for seed in range(seeds):
        own = with_training(study.model_copy(update={"seed": seed}))
        files.append(fold.trained(own, f"seed{seed}"))
        plain, both = fold.logits(load_best(own, files[-1]))
        members.append(plain)
        mirrored.append(both)
        add("one network", plain)
        add("one network, both mirror images", both)
        cycles = snapshots(own, fold, seed)
        add("snapshots", np.mean([fold.logits(load_best(own, file))[0] for file in cycles], axis=0))
        add("mean weights of the snapshots", fold.logits(mean_weights(own, fold, cycles))[0])
    add("seeds", np.mean(members, axis=0))
    add("seeds, both mirror images", np.mean(mirrored, axis=0))
    teachers = fold.folder / "teachers.safetensors"
    tensors = {f"{at}.{name}": one for at, file in enumerate(files) for name, one in read_tensors(file)[0].items()}
    write_tensors(teachers, tensors, {TEACHERS: [study.model.model_dump(mode="json")] * len(files)})
    for seed in range(seeds):
        own = with_training(study.model_copy(update={"seed": seeds + seed}))
        pupil = load_best(own, fold.trained(own, f"pupil{seed}", teachers))
        add("seeds distilled into one network", fold.logits(pupil)[0])
    return found


def main() -> None:
    """Train and score fold by fold, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    path = study_path(Path(arguments.study))
    source = read_source(load_study(path, arguments.set), path, arguments.data)
    study, cases = source.study, [case for case in source.cases if case.split != "test"]
    files = PreparedCache(arguments.cache, PrepareChain(study.prepare)).fill(cases, source.root, SilentReporter())
    folds = folds_of(cases, files, arguments.folds, 0)
    found: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for number in range(arguments.folds):
        started = time.perf_counter()
        parts = [
            PreparedSplit([cases[row] for row in rows], [files[row] for row in rows])
            for rows in (np.flatnonzero(mask).tolist() for mask in (folds != number, folds == number))
        ]
        with TemporaryDirectory() as folder:
            scores = score_fold(study, Fold(parts[0], parts[1], Path(folder)), arguments.seeds)
        print(json.dumps({"fold": number, "s": round(time.perf_counter() - started), **scores}), flush=True)
        for name, values in scores.items():
            found[name].append(float(np.mean(values)))
    single = np.array(found["one network"])
    for name, values in found.items():
        gain = np.array(values) - single
        print(
            f"{name:34} networks {NETWORKS[name] or arguments.seeds * (1 + ('mirror' in name))}  "
            f"mean AUC {np.mean(values):.4f}  against one network {gain.mean():+.4f} (folds {np.round(gain, 3)})"
        )
    print(machine())


if __name__ == "__main__":
    main()

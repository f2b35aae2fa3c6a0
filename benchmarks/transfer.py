"""How a start is best tuned: recipes compared on folds of the training and validation images, never on the test split.

    python benchmarks/transfer.py busi_official --data DATA --start nsfw-thin-resnet50 --recipe probe --recipe layer4

Near-duplicates and the images of one patient stay in one fold. Every recipe is looked at after each of its epochs, and
the same epoch counts for all folds: nothing is chosen by the images that it is scored on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.config import FineTune, Study
from medopt.config.shipped import study_path
from medopt.config.study_file import load_study
from medopt.core.provenance import machine
from medopt.core.records import Case, Split
from medopt.core.reporter import SilentReporter
from medopt.data.cache import PreparedCache, load_prepared
from medopt.manifest.duplicates import find_duplicates, thumbnail
from medopt.manifest.image_facts import pixel_digest
from medopt.pipeline.linear_baselines import start_baseline, thumbnail_baseline
from medopt.pipeline.predict import validation_score
from medopt.pipeline.study_cases import read_source
from medopt.training.checkpoint import write_tensors
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.loop import fit
from medopt.transforms.prepare import PrepareChain

RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {},
    "layer4": {"freeze": "layer3", "lr": 3e-5},
    "layer4-fast": {"freeze": "layer3", "lr": 3e-4},
    "layer3": {"freeze": "layer2", "lr": 3e-5},
    "all": {"freeze": "nothing", "lr": 3e-5},
    "all-fast": {"freeze": "nothing", "lr": 1e-4},
    "all-live": {"freeze": "nothing", "lr": 3e-5, "statistics": "live"},
    "all-l2sp": {"freeze": "nothing", "lr": 1e-4, "toward_start": 0.1},
}


@dataclass(frozen=True, slots=True)
class Row:
    """A recipe on one fold with one seed: AUC on the held-out images after each epoch; of the probe one number."""

    recipe: str
    fold: int
    seed: int
    auc: tuple[float, ...]
    seconds: float


def folds_of(cases: Sequence[Case], files: Sequence[Path], count: int, seed: int) -> NDArray[np.int64]:
    """The fold (N,) of each image: patients and near-duplicates are dealt out together."""
    owner = np.unique([case.patient_id for case in cases], return_inverse=True)[1]
    small = {row: thumbnail(load_prepared(file)) for row, file in enumerate(files)}
    for pair in find_duplicates(small, lambda row: pixel_digest(load_prepared(files[row]))):
        owner[owner == owner[pair.second]] = owner[pair.first]
    groups = np.unique(owner)
    order = np.random.default_rng(seed).permutation(len(groups)) % count
    return order[np.searchsorted(groups, owner)]


def tuned(study: Study, recipe: str, epochs: int, seed: int) -> Study:
    """The study with a recipe's settings."""
    values = dict(RECIPES[recipe])
    training = study.training
    optimizer = training.optimizer.model_copy(update={"lr": values.pop("lr", training.optimizer.lr)})
    changed = {
        "epochs": epochs,
        "patience": epochs,
        "keep": "last",
        "optimizer": optimizer,
        "fine_tune": FineTune(**values),
    }
    return study.model_copy(update={"seed": seed, "training": training.model_copy(update=changed)})


def run_fold(study: Study, recipe: str, train: PreparedSplit, held: PreparedSplit, fold: int, epochs: int) -> Row:
    """Fit on `train`, score on `held`."""
    started = time.perf_counter()
    splits: dict[Split, PreparedSplit] = {"train": train, "val": held}
    if recipe == "thumbnail":
        auc = (thumbnail_baseline(study, splits, ("train", "val")).validation_auc,)
        return Row(recipe, fold, study.seed, auc, time.perf_counter() - started)
    with TemporaryDirectory() as folder:
        job = TrainingJob(study, train, held, Path(folder), {"fold": str(fold)})
        if study.model.has_start:
            baseline, network, _ = start_baseline(study, splits, ("train", "val"), SilentReporter(), Path("runs"))
            if recipe == "probe":
                return Row(recipe, fold, study.seed, (baseline.validation_auc,), time.perf_counter() - started)
            weights = Path(folder) / "start.safetensors"
            write_tensors(weights, network.state_dict(), {})
            job = replace(job, start=weights, tunes_start=True)
        trained = fit(job, open_fabric(study.training), TrainingCallbacks(validation_score(study, held)))
    scores = tuple(record.val_metric for record in trained.history)
    return Row(recipe, fold, study.seed, scores, time.perf_counter() - started)


def main() -> None:
    """Run the recipes and print a line a fold and a mean a recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", default="nsfw-thin-resnet50")
    parser.add_argument("--recipe", action="append", choices=["probe", "thumbnail", *RECIPES], required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    path, rows = study_path(Path(arguments.study)), []
    for recipe in arguments.recipe:
        start = "scratch" if recipe == "scratch" else arguments.start
        given = load_study(path, [f"model.start={start}", f"training.accelerator={arguments.device}", *arguments.set])
        source = read_source(given, path, arguments.data)
        cases = [case for case in source.cases if case.split != "test"]
        files = PreparedCache(arguments.cache, PrepareChain(given.prepare)).fill(cases, source.root, SilentReporter())
        folds = folds_of(cases, files, arguments.folds, 0)

        def part(
            mask: NDArray[np.bool_], cases: Sequence[Case] = cases, files: Sequence[Path] = files
        ) -> PreparedSplit:
            chosen = np.flatnonzero(mask).tolist()
            return PreparedSplit([cases[row] for row in chosen], [files[row] for row in chosen])

        for seed in range(arguments.seeds):
            study = source.study.model_copy(update={"seed": seed})
            if recipe in RECIPES:
                study = tuned(source.study, recipe, arguments.epochs, seed)
            for fold in range(arguments.folds):
                row = run_fold(study, recipe, part(folds != fold), part(folds == fold), fold, arguments.epochs)
                rows.append(row)
                print(json.dumps({"recipe": recipe, "seed": seed, "fold": fold, "auc": row.auc, "s": row.seconds}))
        scores = np.array([row.auc for row in rows if row.recipe == recipe])
        print(
            recipe,
            "mean AUC by epoch:",
            np.round(scores.mean(0), 4),
            "SD over folds and seeds",
            np.round(scores.std(0), 4),
        )
    print(machine())


if __name__ == "__main__":
    main()

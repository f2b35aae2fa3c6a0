"""What does the simulated domain shift bring at a hospital that training has never seen?

    python benchmarks/domain_shift.py [--shift none radiograph] [--seeds 3] [--work FOLDER] [--json]

Leave-one-site-out on the drawn study: a site is held out whole, the network is trained on the other two, its best epoch
is chosen on their validation patients, and the AUC is taken once, at the unseen site. Every site, seed and setting is a
training of its own; one that was done is not repeated (--work keeps them).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from medopt.cli.console import ConsoleReporter
from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.records import Case
from medopt.data.cache import PreparedCache
from medopt.data.loaders import predict_loader
from medopt.manifest.splits import SplitRules, assign_splits
from medopt.manifest.table import read_manifest
from medopt.metrics.bootstrap import patient_draws
from medopt.metrics.weighted import auc
from medopt.phantom import draw_study
from medopt.training.epoch import predict_logits
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.loop import load_best
from medopt.transforms.prepare import PrepareChain

STUDY = Path(__file__).parent.parent / "pipelines" / "phantom.yaml"
DRAWS, CONFIDENCE = 2000, 0.95


def without_site(cases: Sequence[Case], study: Study, site: str) -> list[Case]:
    """The cases with `site` as the test split, and the other sites' patients in train and val."""
    patients, sites = (np.array([getattr(case, name) for case in cases]) for name in ("patient_id", "site"))
    labels = np.array([case.label[0] for case in cases])[:, None] == np.arange(2)
    own, rules = np.full(len(cases), ""), SplitRules(shares=(0.8, 0.2, 0.0), hold_out=site, resplit=True)
    split = assign_splits(patients, labels, sites, own, rules, study.data.labels).split
    return [replace(case, split=name) for case, name in zip(cases, split.tolist(), strict=True)]


def seen_auc(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """AUC of a binary study's logits (N, 1)."""
    return float(auc(logits, targets > 0.5)[0])


def unseen_logits(
    study: Study, cases: Sequence[Case], files: Sequence[Path], folder: Path, reporter: ConsoleReporter
) -> NDArray[np.float64]:
    """Train without the test split's site, in `folder`, and return the logits (N,) there."""
    kept = folder / "unseen.npy"
    if not kept.exists():
        sets = {}
        for split in ("train", "val", "test"):
            rows = [row for row, case in enumerate(cases) if case.split == split]
            sets[split] = PreparedSplit([cases[row] for row in rows], [files[row] for row in rows])
        facts = {"study": study.digest(), "held_out": sets["test"].cases[0].site}
        trained = train(
            TrainingJob(study, sets["train"], sets["val"], folder, facts),
            TrainingCallbacks(seen_auc, reporter=reporter),
        )
        test = sets["test"]
        loader = predict_loader(study, test.cases, test.files)
        logits, _ = predict_logits(load_best(study, trained.weights), loader, torch.device("cpu"))
        np.save(kept, logits[:, 0])
    found: NDArray[np.float64] = np.load(kept)
    return found


def mean_auc(
    logits: Sequence[NDArray[np.float64]], truth: NDArray[np.bool_], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """The AUC averaged over the seeds' logits (N,), for each row of weights (B, N)."""
    return np.mean([auc(one[:, None], truth[:, None], weights) for one in logits], axis=0)


def compare(
    logits: dict[str, list[NDArray[np.float64]]], truth: NDArray[np.bool_], patients: NDArray[np.str_]
) -> dict[str, dict[str, float]]:
    """Each setting's mean AUC, and its difference from the first's, with intervals over the same drawn patients."""
    first = next(iter(logits))
    here = np.ones((1, len(truth)), np.int64)
    point = {name: float(mean_auc(one, truth, here)[0]) for name, one in logits.items()}
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in logits}
    for weights in patient_draws(patients, DRAWS, np.random.default_rng(0)):
        for name, one in logits.items():
            parts[name].append(mean_auc(one, truth, weights))
    drawn = {name: np.concatenate(values) for name, values in parts.items()}
    ends = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    found = {}
    for name in logits:
        low, high = np.nanpercentile(drawn[name], ends)
        less, more = np.nanpercentile(drawn[name] - drawn[first], ends)
        gain = point[name] - point[first]
        found[name] = {"auc": point[name], "low": low, "high": high, "gain": gain, "gain_low": less, "gain_high": more}
    return found


def main() -> None:
    """Train, compare, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shift", nargs="+", default=["none", "radiograph"], help="settings to compare, as NAME[:P]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sites", nargs="+", default=["site_a", "site_b", "site_c"])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="overrides of pipelines/phantom.yaml")
    parser.add_argument("--patients", type=int, default=600)
    parser.add_argument("--work", type=Path, help="folder that keeps images and trainings")
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    words = parser.parse_args()
    work = words.work or Path(tempfile.mkdtemp(prefix="medopt-shift-"))
    reporter, found = ConsoleReporter(), {}
    base = load_study(STUDY, words.overrides)
    manifest = draw_study(work / "phantom", patients=words.patients, reporter=reporter)
    every = read_manifest(manifest, base)
    files = PreparedCache(work / "cache", PrepareChain(base.prepare)).fill(every, manifest.parent, reporter)
    for site in words.sites:
        cases = without_site(every, base, site)
        test = [case for case in cases if case.split == "test"]
        logits: dict[str, list[NDArray[np.float64]]] = {}
        for setting in words.shift:
            name, _, chance = setting.partition(":")
            for seed in range(words.seeds):
                extra = [f"augment.shift={name}", f"seed={seed}"]
                extra += [f"augment.shift_probability={chance}"] if chance else []
                study = load_study(STUDY, [*words.overrides, *extra])
                folder = work / "trained" / f"{site}-{setting.replace(':', '-')}-{seed}-{study.digest()[:8]}"
                logits.setdefault(setting, []).append(unseen_logits(study, cases, files, folder, reporter))
        truth = np.array([case.label[0] == 1 for case in test])
        found[site] = compare(logits, truth, np.array([case.patient_id for case in test]))
    reporter.close()
    table = Table("unseen site", "setting", "AUC (95 % interval)", "gain over the first", title_justify="left")
    for site, settings in found.items():
        for name, one in settings.items():
            gain = f"{one['gain']:+.3f} ({one['gain_low']:+.3f} to {one['gain_high']:+.3f})"
            table.add_row(site, name, f"{one['auc']:.3f} ({one['low']:.3f}-{one['high']:.3f})", gain)
    Console(width=140).print(table)
    if words.json:
        print(json.dumps({"sites": found, "seeds": words.seeds, "patients": words.patients}))


if __name__ == "__main__":
    main()

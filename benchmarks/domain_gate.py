"""Which scans does a run's domain gate decline, and would another measure have found more?

    python benchmarks/domain_gate.py RUN --data DATA [--runs RUNS] --others FOLDER [FOLDER ...] [--json]

RUN is a run's folder. The gate is its own (models/domain.json); beside it stand its two distances alone, the distance
to the fifth nearest training image, and what the logits say by themselves (least probability of the chosen class;
energy, Liu et al. 2020), each with its limit at the same share of validation. FOLDERs hold images of another kind, as
the classes of MedNIST; each of their subfolders is a set of its own. All with the int8 model.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp, softmax

from medopt.config.study_file import load_study
from medopt.core.errors import DataError
from medopt.core.records import FloatArray, batches
from medopt.data.cache import PreparedCache
from medopt.inference.engines import load_batch, open_engine
from medopt.pipeline.stages.ood_check import alterations
from medopt.pipeline.study_cases import read_source
from medopt.release.ood_check import OutOfDomainCheck, texture
from medopt.transforms.prepare import PrepareChain

Floats = NDArray[np.float64]
Looked = tuple[Floats, Floats, Floats]
MOST = 100


def logit_pair(logits: Floats) -> Floats:
    """Logits of every class: those of a binary study beside a zero for the other."""
    return np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits


def measures(train: Looked, gate: OutOfDomainCheck) -> dict[str, Callable[[Looked], Floats]]:
    """How odd (N,) images look, by the name of the measure."""

    def nearest(looked: Looked) -> Floats:
        apart = np.linalg.norm(looked[1][:, None] - train[1][None], axis=2)
        return np.asarray(np.partition(apart, 5, axis=1)[:, 5])

    return {
        "content": lambda looked: gate.content["int8"].of(looked[1]),
        "texture": lambda looked: gate.texture.of(looked[2]),
        "nearest": nearest,
        "max softmax": lambda looked: -softmax(logit_pair(looked[0]), axis=1).max(axis=1),
        "energy": lambda looked: -np.asarray(logsumexp(logit_pair(looked[0]), axis=1)),
    }


def folders(paths: list[Path]) -> dict[str, list[Path]]:
    """Up to MOST images of each folder, or of each of its subfolders."""
    found = {}
    for path in paths:
        for folder in sorted(one for one in path.iterdir() if one.is_dir()) or [path]:
            files = sorted(one for one in folder.rglob("*") if one.is_file())
            found[f"{path.name}/{folder.name}" if folder != path else path.name] = files[:MOST]
    return found


def main() -> None:
    """Look at all sets, compare, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="folder of runs with the cache; else that of RUN")
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    words = parser.parse_args()
    study = load_study(words.run / "study.yaml")
    source = read_source(study, words.run / "study.yaml", words.data)
    chain, gate = PrepareChain(study.prepare), OutOfDomainCheck.read(words.run / "models" / "domain.json")
    files = PreparedCache((words.runs or words.run.parent.parent) / "cache", chain).fill(source.cases, source.root)
    engine = open_engine("onnxruntime", words.run / "models" / "int8.onnx", 1)

    def looked_at(batch: FloatArray) -> Looked:
        parts = [(*engine.run_both(batch[rows]), texture(batch[rows])) for rows in batches(len(batch), 16)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    images = {
        split: load_batch([file for case, file in zip(source.cases, files, strict=True) if case.split == split])
        for split in ("train", "val", "test")
    }
    sets = {"test": images["test"]}
    few = images["test"][:: max(1, len(images["test"]) // 60)]
    names = [str(row) for row in range(len(few))]
    sets |= {f"test, {name}": np.ascontiguousarray(change(few, names)) for name, change in alterations(study).items()}
    for name, paths in folders(words.others).items():
        kept = []
        for path in paths:
            try:
                kept.append(chain(path).numpy())
            except DataError:
                continue
        if kept:
            sets[name] = np.stack(kept)
    train, val = looked_at(images["train"]), looked_at(images["val"])
    found: dict[str, dict[str, float]] = {name: {"n": float(len(batch))} for name, batch in sets.items()}
    looks = {name: looked_at(batch) for name, batch in sets.items()}
    rank = min(len(val[0]), math.ceil((len(val[0]) + 1) * (1 - gate.false_alarm)))
    for name, batch in sets.items():
        reasons = gate.reasons(batch, gate.distances("int8", looks[name][1], batch), [None] * len(batch))
        found[name]["gate"] = float(np.mean([bool(reason) for reason in reasons]))
    for measure, odd in measures(train, gate).items():
        limit = np.sort(odd(val))[rank - 1]
        for name, looked in looks.items():
            found[name][measure] = float((odd(looked) > limit).mean())
    columns = [name for name in found["test"] if name != "n"]
    table = Table("set", "images", *columns, title=f"share declined; limits for {gate.false_alarm:.0%} of validation")
    for name, row in found.items():
        table.add_row(name, f"{row['n']:.0f}", *(f"{row[column]:.2f}" for column in columns))
    Console(width=120).print(table)
    if words.json:
        print(json.dumps({"false_alarm": gate.false_alarm, "sets": found}))


if __name__ == "__main__":
    main()

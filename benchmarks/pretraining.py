"""Ways to pretrain without labels, at equal processor time: what the nearest neighbours then say of unseen images.

    python benchmarks/pretraining.py [--json] [--seconds 120] [--batch 32] [--seeds 1] [--mednist DIR] [--patients 400]

The drawn study (96 pixels) and MedNIST's six classes of 64 pixels, a ResNet-26 of quarter width. VICReg is medopt's own
(`medopt.training.self_supervised`); BYOL (Grill et al. 2020) is written here, with the same views, network, projector,
optimizer and schedule. Figures are AUCs of weighted nearest neighbours: with all labelled images of the training split,
and with five of each class (mean of 20 draws). The test split is never looked at.

Measured on one core (MedNIST: 60 s a training on 300 images, two seeds; drawn: 90 s on 160 images, one seed):

| AUC of the neighbours       | none | VICReg      | BYOL        |
|-----------------------------|------|-------------|-------------|
| MedNIST, all labels         | .960 | .993, .996  | .988, .990  |
| MedNIST, five a class       | .864 | .975, .980  | .966, .978  |
| drawn, sex, all labels      | .851 | .821        | .839        |
| drawn, sex, five a class    | .668 | .744        | .748        |
| drawn, nodule, all labels   | .385 | .558        | .558        |
| drawn, nodule, five a class | .505 | .504        | .515        |

A nodule of some millimetres stays at chance with each. VICReg takes a quarter more steps in the same time, has the
better neighbours on MedNIST, and needs no second network: so it is medopt's.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medopt.config import Augment, Data, Model, Prepare, Study
from medopt.core.records import Case
from medopt.data.cache import PreparedCache, as_tensor
from medopt.metrics.nearest_neighbours import neighbour_scores
from medopt.phantom import draw_study
from medopt.training.self_supervised import PROJECTED, Embedder, TwoViews, ViewSampler, mlp, spread_of, vicreg
from medopt.transforms.prepare import PrepareChain


@dataclass(frozen=True)
class Images:
    """Prepared images; `learn` and `judge` are rows, and a task has one class for each image (-1: none)."""

    study: Study
    files: Sequence[Path]
    learn: NDArray[np.intp]
    judge: NDArray[np.intp]
    tasks: dict[str, NDArray[np.int64]]


def study_of(name: str, side: int, augment: Augment, seed: int) -> Study:
    """A quarter-width ResNet-26 for images of `side` pixels."""
    return Study(
        name=name,
        question="What are they worth?",
        seed=seed,
        data=Data(manifest="none.csv", labels=["no", "yes"]),
        prepare=Prepare(size=[side, side], fit="pad"),
        augment=augment,
        model=Model(depth=26, width=0.25),
    )


def drawn(folder: Path, patients: int, seed: int) -> Images:
    """The drawn study: is there a nodule, and the patient's sex."""
    manifest = draw_study(folder / "phantom", patients=patients)
    rows = [line.split(",") for line in manifest.read_text().splitlines()]
    head, rows = rows[0], rows[1:]
    column = {name: [row[at] for row in rows] for at, name in enumerate(head)}
    augment = Augment(shift="radiograph", shift_probability=0.25)
    study = study_of("drawn", 96, augment, seed)
    cases = [Case(str(at), str(at), image, (0,), "train") for at, image in enumerate(column["image"])]
    files = PreparedCache(folder / "cache", PrepareChain(study.prepare)).fill(cases, manifest.parent)
    split = np.array(column["split"])
    tasks = {
        "nodule": np.array([label == "nodule" for label in column["label"]]).astype(np.int64),
        "sex": np.array([sex == "M" for sex in column["sex"]]).astype(np.int64),
    }
    return Images(study, files, np.flatnonzero(split == "train"), np.flatnonzero(split == "val"), tasks)


def mednist(folder: Path, source: Path, seed: int) -> Images:
    """Six kinds of images; every second one is learned from."""
    paths = sorted(path for path in source.glob("*/*.jpeg"))
    names = sorted({path.parent.name for path in paths})
    study = study_of("mednist", 64, Augment(), seed)
    cases = [Case(str(at), str(at), str(path.relative_to(source)), (0,), "train") for at, path in enumerate(paths)]
    files = PreparedCache(folder / "cache", PrepareChain(study.prepare)).fill(cases, source)
    kinds = np.array([names.index(path.parent.name) for path in paths])
    rows = np.arange(len(paths))
    return Images(study, files, rows[::2], rows[1::2], {"kind": kinds})


def auc_of(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Macro average of one class against the rest."""
    values = []
    for at in np.unique(classes):
        score, positive = scores[:, at], classes == at
        wins = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
        values.append(wins.mean())
    return float(np.mean(values))


@torch.no_grad()
def probe(backbone: nn.Module, images: Images) -> dict[str, float]:
    """AUC of the neighbours on the rows to judge, by task: with all labels and with five of each class."""
    mode = backbone.training
    backbone.eval()
    parts = [
        backbone(torch.stack([as_tensor(file) for file in images.files[at : at + 64]]))
        for at in range(0, len(images.files), 64)
    ]
    backbone.train(mode)
    features = torch.cat(parts).double().numpy()
    figures = {}
    for task, classes in images.tasks.items():
        targets = np.eye(classes.max() + 1)[classes]
        scores = neighbour_scores(features[images.learn], targets[images.learn], features[images.judge])
        figures[task] = auc_of(scores, classes[images.judge])
        few = []
        for draw in range(20):
            random = np.random.default_rng(draw)
            own = classes[images.learn]
            some = np.concatenate([random.choice(images.learn[own == at], 5, replace=False) for at in np.unique(own)])
            scores = neighbour_scores(features[some], targets[some], features[images.judge], neighbours=5)
            few.append(auc_of(scores, classes[images.judge]))
        figures[f"{task}, 5 a class"] = float(np.mean(few))
    return figures


class Byol(nn.Module):
    """A network that predicts what its own moving average says of the other view."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self.online = Embedder(study)
        self.predictor = mlp(PROJECTED, PROJECTED, PROJECTED, layers=2, seed=study.seed + 1)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def loss(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of two views, and the embeddings of the first."""
        with torch.no_grad():
            goals = self.target(first), self.target(second)
        embedded = self.online(first), self.online(second)
        pairs = ((self.predictor(embedded[0]), goals[1]), (self.predictor(embedded[1]), goals[0]))
        return sum(2 - 2 * F.cosine_similarity(a, b).mean() for a, b in pairs), embedded[0]

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move the average, by less and less."""
        decay = 1 - 0.01 * (np.cos(np.pi * share) + 1) / 2
        for kept, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for kept, new in zip(self.target.buffers(), self.online.buffers(), strict=True):
            kept.copy_(new)


def train(images: Images, method: str, seconds: float, batch: int, rate: float) -> tuple[nn.Module, dict[str, Any]]:
    """Train for so many seconds of the processor; the backbone, and what the training came to."""
    study = images.study
    files = [images.files[row] for row in images.learn]
    if method == "byol":
        byol = Byol(study)
        network, backbone = byol, byol.online.backbone
        loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = byol.loss
    else:
        embedder = Embedder(study)
        network, backbone = embedder, embedder.backbone

        def loss(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            embedded = embedder(first), embedder(second)
            return vicreg(*embedded), embedded[0]

    network = network.to(memory_format=torch.channels_last).train()
    sampler = ViewSampler(study.seed, len(files), batch)
    loader = DataLoader(TwoViews(study, files), batch_sampler=sampler)
    optimizer = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], rate, weight_decay=0.05)
    started, steps, epoch, value, spread = time.process_time(), 0, 0, float("nan"), None
    share = 0.0
    while share < 1:
        sampler.epoch, epoch = epoch, epoch + 1
        for first, second in loader:
            share = (time.process_time() - started) / seconds
            if share >= 1:
                break
            warm = min(1.0, share / 0.1)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (1 + np.cos(np.pi * share)) / 2
            optimizer.zero_grad()
            total, embedded = loss(first, second)
            total.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if method == "byol":
                byol.follow(share)
            steps, value, spread = steps + 1, total.item(), spread_of(embedded)
    return backbone, {"steps": steps, "epochs": epoch, "loss": value, "spread": spread}


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--seconds", type=float, default=120, help="of the processor, for each training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--patients", type=int, default=400, help="of the drawn study; 0 leaves it out")
    parser.add_argument("--mednist", type=Path, default=None, help="folder of MedNIST's classes")
    parser.add_argument("--methods", default="none,vicreg,byol")
    words = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(words.seeds):
            sets = [drawn(folder, words.patients, seed)] if words.patients else []
            sets += [mednist(folder, words.mednist, seed)] if words.mednist else []
            for images in sets:
                for method in words.methods.split(","):
                    trained: dict[str, Any] = {}
                    if method == "none":
                        backbone: nn.Module = Embedder(images.study).backbone
                    else:
                        backbone, trained = train(images, method, words.seconds, words.batch, words.rate)
                    row = {"images": images.study.name, "method": method, "seed": seed, **trained}
                    rows.append({**row, **probe(backbone, images)})
                    print(rows[-1], file=sys.stderr, flush=True)
    show(rows)
    if words.json:
        print(json.dumps(rows, default=str))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the seeds, one row a set of images and method."""
    table = Table("images", "method", "task", "auc of the neighbours")
    for key in dict.fromkeys((row["images"], row["method"]) for row in rows):
        group = [row for row in rows if (row["images"], row["method"]) == key]
        for task in group[0]:
            if task.split(",")[0] in ("nodule", "sex", "kind"):
                values = [row[task] for row in group]
                table.add_row(*key, task, f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    Console().print(table)


if __name__ == "__main__":
    main()

"""Images a second of medopt's training loop: against the bare step, MONAI's trainer and a plain loop, interleaved.

    python benchmarks/training.py [--json] [--images 64] [--rounds 5] [--epochs 1] [--batch 8] [--side 224] [--no-parts]

A ResNet-50 on drawn radiographs. Every loop trains medopt's network, in the same memory layout, with AdamW of the same
settings, batch size and number of threads, in one process. medopt's AdamW is one kernel (torch's `fused`), the other
loops' is torch's default; one bare step has the kernel, too. All but the bare steps, which take one tensor in memory
again and again, augment images whose deterministic part they have cached: medopt on disk, MONAI's CacheDataset in
memory, PersistentDataset on disk. medopt's loop also clips gradients and keeps a moving average of the weights; the
others do not. Afterwards: where medopt's time goes, and what other ways to load and to step would bring.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import exp, radians
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loading import Radiographs
from monai.data import CacheDataset, DataLoader, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    Resized,
    ScaleIntensityRangePercentilesd,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from medopt.config import Augment, Data, Model, Prepare, Study, Training
from medopt.core.provenance import machine
from medopt.core.reporter import SilentReporter
from medopt.data.cache import PreparedCache
from medopt.models import build_model
from medopt.training.epoch import Epochs
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingJob
from medopt.training.optimizers import build_optimizer
from medopt.training.step import start_state
from medopt.transforms.prepare import PrepareChain

Epoch = Callable[[], Any]


def make_study(side: int, batch: int, precision: str = "32-true", accelerator: str = "cpu") -> Study:
    """A full-width ResNet-50 with the default augmentation, clipping, and a moving average."""
    return Study(
        name="training",
        question="How fast?",
        data=Data(manifest="none.csv", labels=["no", "yes"]),
        prepare=Prepare(size=[side, side], fit="stretch"),
        model=Model(depth=50, width=1.0),
        training=Training(
            epochs=1000, batch_size=batch, ema_decay=0.99, precision=precision, accelerator=accelerator
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Arena:
    """What every loop trains on: a study, the radiographs, and medopt's prepared files of them."""

    study: Study
    radiographs: Radiographs
    prepared: PreparedSplit
    folder: Path

    @classmethod
    def draw(cls, study: Study, images: int, folder: Path) -> Arena:
        """Radiographs of 1 to 2 megapixels, prepared for medopt."""
        drawn = Radiographs.draw(folder / "phantom", images)
        files = PreparedCache(folder / "medopt", PrepareChain(study.prepare)).fill(drawn.cases, drawn.root)
        return cls(study, drawn, PreparedSplit(drawn.cases, files), folder)

    @property
    def images(self) -> int:
        """Images of an epoch: whole batches."""
        return len(self.radiographs.cases) // self.size * self.size

    @property
    def size(self) -> int:
        """Images of a batch."""
        return self.study.training.resolved_sizes[0]

    def net(self, fused: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The study's network in the layout that medopt trains it in, and its optimizer."""
        device = open_fabric(self.study.training).device
        model = build_model(self.study).to(device=device, memory_format=torch.channels_last).train()
        return model, build_optimizer(self.study.training.optimizer, model, fused=fused)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, bf16: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Forward, backward, step, and nothing else."""

    def step(image: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            logits = model(image)
        loss = F.binary_cross_entropy_with_logits(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def bare(arena: Arena, fused: bool = False) -> Epoch:
    """The same batch in memory, again and again."""
    model, optimizer = arena.net(fused)
    device = next(model.parameters()).device
    step = plain_step(model, optimizer, arena.study.training.precision == "bf16-mixed")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(arena.size, 1, *arena.study.prepare.size, generator=generator).to(device)
    target = (torch.arange(arena.size) % 2).float()[:, None].to(device)

    def epoch() -> None:
        for _ in range(arena.images // arena.size):
            loss = step(image, target)
        loss.item()  # a GPU has done its work by then

    return epoch


def medopt_epochs(arena: Arena) -> Epochs:
    """medopt's own loop as `medopt run` has it, without validation and checkpoints."""
    fabric = open_fabric(arena.study.training)
    task = TrainingJob(arena.study, arena.prepared, arena.prepared, arena.folder / "run", {})
    return Epochs(task, fabric, start_state(arena.study, fabric), SilentReporter())


def monai_chain(side: int, augment: Augment) -> Compose:
    """MONAI's usual chain, and its equivalents of medopt's default augmentation."""
    key, share = "image", augment.probability
    return Compose(
        [
            LoadImaged(key),
            EnsureChannelFirstd(key),
            ScaleIntensityRangePercentilesd(key, 0.5, 99.5, 0, 1, clip=True),
            Resized(key, (side, side), anti_aliasing=True),
            EnsureTyped(key, track_meta=False),
            RandFlipd(key, prob=0.5, spatial_axis=0),
            RandAffined(
                key,
                prob=share,
                rotate_range=radians(augment.rotate_degrees),
                scale_range=(augment.scale, augment.scale),
                translate_range=(augment.translate * side, augment.translate * side),
                padding_mode="zeros",
            ),
            RandGaussianNoised(key, prob=share, std=augment.gaussian_noise),
            RandAdjustContrastd(key, prob=share, gamma=(exp(-augment.gamma), exp(augment.gamma))),
            RandScaleIntensityFixedMeand(key, prob=share, factors=augment.contrast),
            RandShiftIntensityd(key, prob=share, offsets=augment.brightness),
        ]
    )


def _items(arena: Arena) -> list[dict[str, Any]]:
    root = arena.radiographs.root
    return [
        {"image": str(root / case.image), "label": torch.tensor(case.label, dtype=torch.float32)}
        for case in arena.radiographs.cases
    ]


def _loader(arena: Arena, data: Any) -> DataLoader:
    return DataLoader(data, batch_size=arena.size, shuffle=True, drop_last=True)


def monai_trainer(arena: Arena) -> Epoch:
    """MONAI's SupervisedTrainer over a CacheDataset; raises ImportError without pytorch-ignite."""
    from ignite.engine import Events  # noqa: F401 - MONAI itself would only say so when it trains
    from monai.engines import SupervisedTrainer

    model, optimizer = arena.net()
    chain = monai_chain(arena.study.prepare.size[0], arena.study.augment)
    trainer = SupervisedTrainer(
        device=next(model.parameters()).device,
        max_epochs=1,
        train_data_loader=_loader(arena, CacheDataset(_items(arena), chain, progress=False)),
        network=model,
        optimizer=optimizer,
        loss_function=nn.BCEWithLogitsLoss(),
        amp=arena.study.training.precision == "bf16-mixed",
    )
    return trainer.run


def plain_loop(arena: Arena) -> Epoch:
    """A plain PyTorch loop over a PersistentDataset."""
    model, optimizer = arena.net()
    device = next(model.parameters()).device
    step = plain_step(model, optimizer, arena.study.training.precision == "bf16-mixed")
    chain = monai_chain(arena.study.prepare.size[0], arena.study.augment)
    loader = _loader(arena, PersistentDataset(_items(arena), chain, arena.folder / "monai"))

    def epoch() -> None:
        for batch in loader:
            step(batch["image"].to(device), batch["label"].to(device)).item()

    return epoch


BARE, OURS = "bare step, one tensor in memory", "medopt, its whole loop"
PEERS: dict[str, Callable[[Arena], Epoch]] = {
    BARE: bare,
    "the same, AdamW in one kernel": partial(bare, fused=True),
    OURS: lambda arena: medopt_epochs(arena).train,
    "MONAI SupervisedTrainer, CacheDataset": monai_trainer,
    "plain PyTorch loop, PersistentDataset": plain_loop,
}


def contest(arena: Arena, peers: Mapping[str, Callable[[Arena], Epoch]], rounds: int, epochs: int) -> dict[str, Any]:
    """Images a second of each loop, and seconds of processor time an image (which other programs change little).

    Round by round; the first one fills caches and is left out.
    """
    works: dict[str, Epoch] = {}
    absent: dict[str, str] = {}
    for name, make in peers.items():
        try:
            works[name] = make(arena)
        except ImportError as error:
            absent[name] = f"not measured: {error}"
    speeds: dict[str, list[float]] = {name: [] for name in works}
    work: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, epoch in works.items():
            started, worked = time.perf_counter(), time.process_time()
            for _ in range(epochs):
                epoch()
            if turn:
                speeds[name].append(arena.images * epochs / (time.perf_counter() - started))
                work[name].append((time.process_time() - worked) / (arena.images * epochs))
    return {"images_per_second": speeds, "processor_s_per_image": work, "absent": absent}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Median, least and most of the rounds' ratios."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(found: Mapping[str, Any]) -> None:
    """The table of loops."""
    speeds, told = found["images_per_second"], found["ratios"]
    title = (
        f"ResNet-50 at {found['side']}, {found['images']} images, batches of {found['batch']}, {found['threads']} "
        "threads, channels last, AdamW, float32: medians of rounds"
    )
    headings = ("", "images/s", "medopt is so many times as fast (least to most)", "ms of processor an image")
    table = Table(*headings, title=title, title_justify="left")
    for name, values in speeds.items():
        one = told.get(name)
        times = f"{one['median']:.3f} ({one['least']:.3f} to {one['most']:.3f})" if one else ""
        work = 1000 * statistics.median(found["processor_s_per_image"][name])
        table.add_row(name, f"{statistics.median(values):.2f}", times, f"{work:.0f}")
    for name, why in found["absent"].items():
        table.add_row(name, "", why)
    Console().print(table)


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    for name, default in (("images", 64), ("rounds", 5), ("epochs", 1), ("batch", 8), ("side", 224)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--no-parts", action="store_true", help="only the loops, not where medopt's time goes")
    words = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="medopt-training-"))
    try:
        arena = Arena.draw(make_study(words.side, words.batch), words.images, folder)
        found = contest(arena, PEERS, words.rounds, words.epochs)
        speeds = found["images_per_second"]
        found |= {
            "ratios": {name: ratio(speeds[OURS], values) for name, values in speeds.items() if name != OURS},
            "side": words.side,
            "images": arena.images,
            "batch": words.batch,
            "threads": torch.get_num_threads(),
            "machine": asdict(machine()),
        }
        show(found)
        if not words.no_parts:
            from training_parts import parts, show_parts

            found |= parts(arena, words.rounds)
            show_parts(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if words.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Is training on this GPU right, and how fast? One script, in under 8 minutes: checks first, then images a second.

    python benchmarks/gpu.py [--json] [--device cuda] [--minutes 7] [--tiny] [--only checks|speed]

It installs nothing, draws its own images, and needs neither mlflow nor openvino nor nncf. The checks: CPU and GPU agree
over 20 steps in float32 and in bf16, in 2-D and 3-D; images from memory and from files are the same; a training that
is cut goes on to the same weights; half precision clips the unscaled gradient; where memory runs out half as many
images go on. The speeds: medopt's whole loop against the bare step on a tensor in memory, compiled where medopt's is, a
plain PyTorch loop with a DataLoader, and MONAI's SupervisedTrainer over a CacheDataset, each with the GPU's
utilisation, its memory, and the share of a matrix product's speed. What comes after --minutes is left out.
`--device cpu --tiny` runs the same code on a CPU in a minute: then the speeds say nothing. Exit code 1: a check failed;
2: no such device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_checks import CHECKS, drawn_split, make_study
from monai.data import CacheDataset
from monai.transforms import Compose
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training import monai_chain, plain_step

from medopt.config import Study
from medopt.core.provenance import machine
from medopt.core.reporter import SilentReporter
from medopt.models import build_model
from medopt.models.cost import study_cost
from medopt.training.epoch import Epochs
from medopt.training.gpu_use import peak_gib, watched_utilisation
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingJob
from medopt.training.optimizers import build_optimizer, takes_fused
from medopt.training.step import start_state
from medopt.training.throughput import PASSES, ceilings

BARE, OURS, PLAIN, MONAI = "bare step", "medopt", "plain loop, DataLoader", "MONAI SupervisedTrainer"
SETTLING = 12  # steps until medopt compiles


@dataclass(frozen=True)
class Case:
    """A network at a size, in batches; `peers` measures the other loops, too."""

    name: str
    depth: int
    width: float
    size: tuple[int, ...]
    batch: int
    compiled: bool = False
    peers: bool = False


CASES = (
    Case("ResNet-50", 50, 1.0, (224, 224), 256, compiled=True, peers=True),
    Case("ResNet-26, quarter width", 26, 0.25, (96, 96), 256, compiled=True, peers=True),
    *(Case("ResNet-50", 50, 1.0, (224, 224), batch) for batch in (64, 128, 512)),
    Case("ResNet-50", 50, 1.0, (512, 512), 64),
    Case("ResNet-50", 50, 1.0, (1024, 1024), 16),
    Case("ResNet-50, 3-D", 50, 1.0, (96, 96, 96), 8),
)
TINY = (
    Case("ResNet-14", 14, 0.125, (32, 32), 4, peers=True),
    Case("ResNet-14, 3-D", 14, 0.125, (16, 16, 16), 4),
)


@dataclass(frozen=True)
class Speed:
    """One loop: images a second, the GPU's mean utilisation, GiB at most, and the share of the product's speed."""

    case: str
    loop: str
    images_per_second: float
    utilisation: float | None
    gib: float
    share: float


class Arena:
    """One case's images and loops on one device."""

    def __init__(self, case: Case, device: str, folder: Path, tiny: bool) -> None:
        self.case, self.tiny = case, tiny
        ways: dict[str, Any] = {"residence": "device", "augment_on": "device", "compile": case.compiled}
        if tiny:
            ways["workers"] = 0
        self.study: Study = make_study(case.depth, case.width, case.size, device, batch_size=case.batch, **ways)
        self.device, self.folder = open_fabric(self.study.training).device, folder
        self.split = drawn_split(self.study, folder / "x".join(map(str, case.size)), 4 * case.batch)

    def network(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The study's network in the layout that medopt trains it in, and its optimizer."""
        layout: Any = torch.channels_last if len(self.case.size) == 2 else torch.channels_last_3d
        model = build_model(self.study).to(self.device, memory_format=layout).train()
        fused = takes_fused(self.device.type, model)
        return model, build_optimizer(self.study.training.optimizer, model, fused=fused)

    def bare(self) -> Callable[[], int]:
        """Forward, backward, step on one batch that lies on the device; what it returns are images."""
        model, optimizer = self.network()
        step = plain_step(torch.compile(model) if self.case.compiled else model, optimizer, self.device.type == "cuda")
        image = torch.rand(self.case.batch, 1, *self.case.size, device=self.device)
        target = (torch.arange(self.case.batch, device=self.device) % 2).float()[:, None]

        def work() -> int:
            step(image, target)
            return self.case.batch

        return work

    def ours(self) -> Callable[[], int]:
        """An epoch of medopt's loop as `medopt run` has it, without validation and checkpoints."""
        fabric = open_fabric(self.study.training)
        val = PreparedSplit(self.split.cases[:4], self.split.files[:4])
        job = TrainingJob(self.study, self.split, val, self.folder / "run", {})
        epochs = Epochs(job, fabric, start_state(self.study, fabric), SilentReporter())
        for _ in range(SETTLING // epochs.sampler.steps + 1 if self.case.compiled else 0):
            epochs.train()
        return lambda: (epochs.train(), epochs.sampler.steps * epochs.sampler.size)[1]

    def plain(self) -> Callable[[], int]:
        """A plain loop over a DataLoader whose workers augment with MONAI's transforms."""
        model, optimizer = self.network()
        step = plain_step(model, optimizer, self.device.type == "cuda")
        loader = DataLoader(
            Drawn(self), self.case.batch, shuffle=True, drop_last=True, num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=self.device.type == "cuda",
        )  # fmt: skip

        def work() -> int:
            images = 0
            for batch in loader:
                image, target = (batch[key].to(self.device, non_blocking=True) for key in ("image", "label"))
                step(image, target)
                images += len(image)
            return images

        return work

    def monai(self) -> Callable[[], int]:
        """MONAI's SupervisedTrainer over a CacheDataset; raises ImportError without pytorch-ignite."""
        from ignite.engine import Events  # noqa: F401 - MONAI itself would only say so when it trains
        from monai.data import DataLoader as MonaiLoader
        from monai.engines import SupervisedTrainer

        model, optimizer = self.network()
        data = CacheDataset(Drawn(self).items(), self.chain(), progress=False)
        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=MonaiLoader(
                data, batch_size=self.case.batch, shuffle=True, drop_last=True, num_workers=self.workers
            ),
            network=model,
            optimizer=optimizer,
            loss_function=nn.BCEWithLogitsLoss(),
            amp=self.device.type == "cuda",
            amp_kwargs={"dtype": torch.bfloat16},
        )
        return lambda: (trainer.run(), len(data) // self.case.batch * self.case.batch)[1]

    @property
    def workers(self) -> int:
        """Loader processes of the peers."""
        return 0 if self.tiny else 12

    def chain(self) -> Compose:
        """MONAI's equivalents of medopt's default augmentation."""
        return Compose(monai_chain(self.case.size[0], self.study.augment).transforms[5:])


class Drawn(Dataset[dict[str, torch.Tensor]]):
    """The arena's images in memory, augmented with MONAI's transforms."""

    def __init__(self, arena: Arena) -> None:
        self.files, self.chain = arena.split.files, arena.chain()

    def __len__(self) -> int:
        return len(self.files)

    def item(self, index: int) -> dict[str, torch.Tensor]:
        """One image in 0..1, as it is."""
        image = torch.from_numpy(np.load(self.files[index]).astype(np.float32) / 65535)
        return {"image": image, "label": torch.tensor([float(index % 2)])}

    def items(self) -> list[dict[str, torch.Tensor]]:
        """All of them."""
        return [self.item(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = self.chain(self.item(index))
        return out


def measure(arena: Arena, name: str, make: Callable[[], Callable[[], int]], peak: float, seconds: float) -> Speed:
    """Time one loop after two rounds that warm up."""
    cuda = arena.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work = make()
    for _ in range(2):
        work()
    images = 0
    with watched_utilisation(arena.device) as samples:
        _wait(cuda)
        started = time.perf_counter()
        while not images or time.perf_counter() - started < seconds:
            images += work()
            _wait(cuda)
        rate = images / (time.perf_counter() - started)
    case = f"{arena.case.name}, {' x '.join(map(str, arena.case.size))}, batch {arena.case.batch}"
    gib = peak_gib(arena.device) or 0.0
    operations = PASSES * 2 * study_cost(arena.study).multiply_adds
    used = float(np.mean(samples)) if samples else None
    return Speed(case + (", compiled" if arena.case.compiled else ""), name, rate, used, gib, rate * operations / peak)


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def speeds(words: argparse.Namespace, folder: Path, deadline: float, show: Callable[[str], None]) -> list[Speed]:
    """All cases, the most important first, until time is up."""
    cuda = words.device == "cuda"
    kind = torch.bfloat16 if cuda else torch.float32
    peak = ceilings(torch.device(words.device), kind, 0.05 if words.tiny else 1.0).operations
    found: list[Speed] = []
    for case in TINY if words.tiny else CASES:
        if time.perf_counter() > deadline:
            show(f"{case.name}, batch {case.batch}: not run, the {words.minutes:g} minutes were over")
            continue
        arena = Arena(case, words.device, folder, words.tiny)
        loops = {BARE: arena.bare, OURS: arena.ours}
        loops |= {PLAIN: arena.plain, MONAI: arena.monai} if case.peers else {}
        for name, make in loops.items():
            try:
                found.append(measure(arena, name, make, peak, 0.05 if words.tiny else 4.0))
                show(f"{found[-1].case}, {name}: {found[-1].images_per_second:.0f} images/s")
            except (ImportError, torch.OutOfMemoryError) as error:
                show(f"{case.name}, batch {case.batch}, {name}: not measured ({str(error)[:100]})")
    return found


def table_of(found: list[Speed], device: str) -> Table:
    """The speeds, and what medopt's loop reaches of the bare step."""
    table = Table("", "loop", "images/s", "of the bare step", "utilisation", "GiB", "of the peak", title=device)
    bare = {one.case: one.images_per_second for one in found if one.loop == BARE}
    for one in found:
        share = f"{one.images_per_second / bare[one.case]:.2f}" if one.case in bare else ""
        used = "" if one.utilisation is None else f"{one.utilisation:.0%}"
        numbers = (f"{one.images_per_second:.0f}", share, used, f"{one.gib:.1f}", f"{one.share:.0%}")
        table.add_row(one.case if one.loop == BARE else "", one.loop, *numbers)
    return table


def main() -> None:
    """Check, measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0, help="no further case is begun after so long")
    parser.add_argument("--tiny", action="store_true", help="small networks and images: only whether it runs")
    parser.add_argument("--only", choices=("checks", "speed"), help="one half of the script")
    words = parser.parse_args()
    if words.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA GPU; --device cpu --tiny runs the same code on the processor.", file=sys.stderr)
        sys.exit(2)
    deadline = time.perf_counter() + 60 * words.minutes
    folder, console = Path(tempfile.mkdtemp(prefix="medopt-gpu-")), Console(stderr=True)
    checks: dict[str, str] = {}
    found: list[Speed] = []
    try:
        for name, check in CHECKS.items() if words.only != "speed" else ():
            try:
                checks[name] = "passed: " + check(words.device, folder / name.replace(" ", "-"))
            except Exception as error:  # whatever a device does wrong is a finding, and the others go on
                checks[name] = f"FAILED: {type(error).__name__}: {error}"
            console.print(f"{name}: {checks[name]}", markup=False)
        if words.only != "checks":
            found = speeds(words, folder, deadline, lambda text: console.print(text, markup=False))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    device = torch.cuda.get_device_name() if words.device == "cuda" else machine().cpu
    if found:
        Console().print(table_of(found, f"{device}, {'bf16' if words.device == 'cuda' else 'float32'}"))
    if words.json:
        speeds_of = [asdict(one) for one in found]
        print(json.dumps({"device": device, "checks": checks, "speeds": speeds_of, "machine": asdict(machine())}))
    sys.exit(any(text.startswith("FAILED") for text in checks.values()))


if __name__ == "__main__":
    main()

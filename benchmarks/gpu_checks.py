"""Whether training on a device is right: the checks of benchmarks/gpu.py, each a sentence or an AssertionError."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medopt.config import Data, Model, Prepare, Study, Training
from medopt.core.records import Case, EpochRecord
from medopt.data.loaders import endless_steps
from medopt.training.checkpoint import read_tensors
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.losses import build_loss
from medopt.training.pace import place
from medopt.training.step import Stepper, start_state

STEPS = 20
DISTINCT = 32  # images that are drawn; more are the same ones again


def make_study(depth: int, width: float, size: Sequence[int], device: str, **training: Any) -> Study:
    """A network with the default augmentation, clipping and mixup, in the precision of the device."""
    settings = {"epochs": 1000, "accelerator": device, "optimizer": {"lr": 0.002}, "clip_norm": 1.0} | training
    return Study(
        name="gpu",
        question="Is it right, and fast?",
        data=Data(manifest="none.csv", labels=["no", "yes"]),
        prepare=Prepare(size=list(size), fit="stretch"),
        model=Model(depth=depth, width=width),
        training=Training.model_validate(settings),
    )


def drawn_split(study: Study, folder: Path, count: int) -> PreparedSplit:
    """Prepared images of 16-bit levels whose brighter half tells the label, in files as the cache has them."""
    folder.mkdir(parents=True, exist_ok=True)
    random, files, cases = np.random.default_rng(0), [], []
    for number in range(count):
        path = folder / f"{number % DISTINCT}.npy"
        if not path.exists():
            image = random.integers(0, 40_000, (1, *study.prepare.size), dtype=np.uint16)
            image[..., : study.prepare.size[-1] // 2] += np.uint16(20_000 * (number % 2))
            np.save(path, image)
        files.append(path)
        cases.append(Case(f"c{number}", f"p{number}", path.name, (number % 2,), "train"))
    return PreparedSplit(cases, files)


def small(device: str, size: Sequence[int] = (32, 32), **training: Any) -> Study:
    """A network of seconds."""
    return make_study(14, 0.25, size, device, **({"batch_size": 8, "precision": "32-true"} | training))


def losses(study: Study, folder: Path, steps: int = STEPS) -> list[float]:
    """The loss of each of the first steps, on the study's device."""
    split, fabric = drawn_split(study, folder, 40), open_fabric(study.training)
    torch.manual_seed(0)
    state = start_state(study, fabric)
    state.network.train()
    stepper = Stepper(study, fabric, state, build_loss(study, split.cases))
    where = study.training.residence
    images = place(split.files, "disk" if where == "auto" else where, fabric.device)
    batches = endless_steps(study, split.cases, images, fabric.device)
    return [float(stepper.step(batch, 0.002, number=n)[0]) for n, batch in enumerate(islice(batches, steps))]


@contextmanager
def exact_products() -> Any:
    """float32 as CPUs have it, without TF32, and the same kernels every time."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before


def farthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def _agrees(device: str, folder: Path, size: Sequence[int], limit: float, **training: Any) -> str:
    with exact_products():
        found = farthest(losses(small("cpu", size), folder), losses(small(device, size, **training), folder))
    assert found < limit, f"the loss of {STEPS} steps differs by up to {found:.2%} from the CPU's"
    return f"{STEPS} steps, losses within {found:.2e} of the CPU's"


def float32_agrees(device: str, folder: Path) -> str:
    """CPU and device, float32, everything augmented on the device."""
    return _agrees(device, folder, (32, 32), 0.01, augment_on="device")


def bf16_agrees(device: str, folder: Path) -> str:
    """The same in bf16."""
    return _agrees(device, folder, (32, 32), 0.2, augment_on="device", precision="bf16-mixed")


def volumes_agree(device: str, folder: Path) -> str:
    """The same in 3-D."""
    return _agrees(device, folder, (16, 16, 16), 0.01, augment_on="device")


def places_agree(device: str, folder: Path) -> str:
    """Images from the device's memory, from main memory and from files."""
    with exact_products():
        found = [
            losses(small(device, residence=one, augment_on="device"), folder) for one in ("disk", "host", "device")
        ]
    assert found[0] == found[1] == found[2], f"losses differ by up to {farthest(found[0], found[2]):.2e}"
    return "from files, main memory and the device: equal to the bit"


def recomputed_agrees(device: str, folder: Path) -> str:
    """Blocks that are computed again."""
    with exact_products():
        found = farthest(losses(small(device), folder), losses(small(device, recompute=True), folder))
    assert found < 1e-3, f"losses differ by up to {found:.2e}"
    return f"losses within {found:.2e}"


class Cut(BaseException):
    """Ends a training between two epochs, as a kill would."""


def resumes(device: str, folder: Path) -> str:
    """A training that is cut after two of four epochs, against one that is not."""
    study = small(device, epochs=4)
    split = drawn_split(study, folder, 40)

    def run(name: str, cut: int) -> tuple[dict[str, Tensor], Sequence[EpochRecord]]:
        def on_epoch(history: Sequence[EpochRecord]) -> None:
            if len(history) == cut:
                raise Cut

        job = TrainingJob(study, split, PreparedSplit(split.cases[:8], split.files[:8]), folder / name, {})
        trained = train(job, TrainingCallbacks(lambda logits, targets: 0.5, on_epoch))
        return read_tensors(trained.weights)[0], trained.history

    with exact_products():
        whole, history = run("whole", -1)
        with suppress(Cut):
            run("cut", 2)
        again, other = run("cut", -1)
    distance = max(float((whole[name] - again[name]).abs().max()) for name in whole)
    assert distance < 1e-4, f"weights differ by up to {distance:.2e}"
    assert [one.epoch for one in history] == [one.epoch for one in other]
    return f"weights differ by {distance:.1e}"


def half_precision_clips(device: str, folder: Path) -> str:
    """fp16: the norm that clipping sees is that of the unscaled gradient, and bounds the step."""
    if device == "cpu":
        return "left out: a CPU has no loss scale"
    optimizer = {"name": "sgd", "lr": 1.0, "momentum": 0, "weight_decay": 0}
    norms, change = [], 0.0
    for precision in ("32-true", "16-mixed"):
        study = small(device, precision=precision, clip_norm=0.01, optimizer=optimizer)
        split, fabric = drawn_split(study, folder, 40), open_fabric(study.training)
        state = start_state(study, fabric)
        state.network.train()
        stepper = Stepper(study, fabric, state, build_loss(study, split.cases))
        batch = next(endless_steps(study, split.cases, split.files, fabric.device))
        before = [parameter.detach().clone() for parameter in state.model.parameters()]
        norms.append(float(stepper.step(batch, 1.0)[1]))
        moved = [(a.detach() - b).square().sum() for a, b in zip(state.model.parameters(), before, strict=True)]
        change = float(torch.stack(moved).sum().sqrt())
    assert abs(norms[1] / norms[0] - 1) < 0.1, f"norm {norms[1]:.4g} in fp16, {norms[0]:.4g} in float32"
    assert change < 0.0101, f"the step is {change:.4g} long, clipped to 0.01"
    return f"norm {norms[1]:.4g}, in float32 {norms[0]:.4g}; the step is {change:.4f} long"


def scarce_memory(device: str, folder: Path) -> str:
    """A GPU with room for some of the images at once."""
    if device == "cpu":
        return "left out: a CPU's process is killed for its memory"
    study = make_study(50, 1.0, (224, 224), device, batch_size=256, residence="disk", compile=False)
    split, fabric = drawn_split(study, folder, 256), open_fabric(study.training)
    said: list[str] = []
    state = start_state(study, fabric)
    state.network.train()
    stepper = Stepper(study, fabric, state, build_loss(study, split.cases), say=said.append)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(12 * 2**30 / whole)
    try:
        loss = float(stepper.step(next(endless_steps(study, split.cases, split.files, fabric.device)), 1e-4)[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said and np.isfinite(loss), "12 GiB were enough for 256 images"
    return f"{stepper.at_once} of 256 images at once in 12 GiB"


Check = Callable[[str, Path], str]
CHECKS: dict[str, Check] = {
    "CPU and device agree, float32": float32_agrees,
    "CPU and device agree, bf16": bf16_agrees,
    "CPU and device agree, 3-D": volumes_agree,
    "images from everywhere": places_agree,
    "blocks computed again": recomputed_agrees,
    "a cut training goes on": resumes,
    "fp16 scale and clipping": half_precision_clips,
    "half as many images where memory runs out": scarce_memory,
}

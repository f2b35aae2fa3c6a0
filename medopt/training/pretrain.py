"""The epochs of a pretraining without labels: killed, it goes on at the last whole epoch, to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.core.records import PretrainingRecord
from medopt.core.reporter import Reporter, SilentReporter
from medopt.data.loaders import Finished, batch_loader
from medopt.training.checkpoint import MAX_CHECKPOINTS, read_tensors, restore_optimizer, write_tensors
from medopt.training.hardware import open_fabric
from medopt.training.neighbour_probe import NeighbourProbe
from medopt.training.norm_statistics import EarlyStatistics
from medopt.training.optimizers import build_optimizer, takes_fused
from medopt.training.schedules import learning_rate
from medopt.training.self_supervised import Embedder, Spread, TwoViews, ViewSampler, both_views, spread_of, vicreg
from medopt.training.xla import correct_running_variances

LOOKED_AT = 8  # steps between two looks at the spread of the embeddings
SETTLED = 2  # epochs that a pretraining has before it may be called collapsed

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Pretraining:
    """What is to be learned from, and where to.

    `facts` (study and data digests) go into every checkpoint; one with other facts is refused. `probe` is asked every
    `probe_every` epochs and after the last. `on_epoch` hears the whole history at the start and after every epoch.
    """

    study: Study
    files: Sequence[Path]
    folder: Path
    facts: Mapping[str, str]
    probe: NeighbourProbe | None = None
    probe_every: int = 5
    on_epoch: Callable[[Sequence[PretrainingRecord]], None] = lambda history: None
    reporter: Reporter = field(default_factory=SilentReporter)
    loss: Loss = vicreg


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The backbone's weights of the last epoch, what each epoch measured, and the probe before the first one."""

    weights: dict[str, Tensor]
    history: tuple[PretrainingRecord, ...]
    before: float | None
    device: str


def pretrain(job: Pretraining) -> Pretrained:
    """Pretrain, or go on with it, on one device.

    Raises TrainingError where the loss is not a number, the embeddings collapse, or a checkpoint is another run's.
    """
    study = job.study
    fabric = open_fabric(study.training)
    model = Embedder(study).to(fabric.device)
    layout = torch.channels_last if study.spatial_dims == 2 else torch.channels_last_3d
    model = model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    correct_running_variances(model, fabric.device)
    before = job.probe.score(model.backbone, fabric.device) if job.probe else None
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    fused = takes_fused(fabric.device.type, model, scaler)
    optimizer = build_optimizer(study.training.optimizer, model, fused=fused)
    history = _restored(job, model, optimizer)
    if before is not None:
        job.reporter.message(f"drawn weights: neighbours {before:.4f}")
    job.on_epoch(history)
    _refuse_collapse(history)
    epochs = _Epochs(job, fabric, model, optimizer)
    while len(history) < study.training.epochs:
        record = epochs.run(len(history))
        history.append(record)
        job.reporter.message(_line(study, record))
        _save(job, model, optimizer, history)
        job.on_epoch(history)
        _refuse_collapse(history)
    weights = {name: value.detach().cpu() for name, value in model.backbone.state_dict().items()}
    return Pretrained(weights, tuple(history), before, str(fabric.device))


class _Epochs:
    """The views, and the steps of an epoch."""

    def __init__(self, job: Pretraining, fabric: Fabric, model: Embedder, optimizer: torch.optim.Optimizer) -> None:
        self.job, self.fabric, self.model, training = job, fabric, model, job.study.training
        self.sampler = ViewSampler(job.study.seed, len(job.files), training.resolved_sizes[0])
        is_cuda = fabric.device.type == "cuda"
        data, device = TwoViews(job.study, job.files, changes=not is_cuda), fabric.device
        loader = batch_loader(job.study, data, self.sampler, device)
        self.loader = Finished(loader, lambda views: both_views(views, device), device) if is_cuda else loader
        self.network, self.statistics = fabric.setup_module(model), EarlyStatistics(model)
        self.optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))

    def run(self, epoch: int) -> PretrainingRecord:
        """One epoch, and the probe where it is due."""
        job, training = self.job, self.job.study.training
        self.sampler.epoch, steps = epoch, len(self.sampler)
        advance = job.reporter.progress(steps * self.sampler.size, f"epoch {epoch + 1}/{training.epochs}")
        self.model.train()
        losses, spreads, waited, rate = [], [], 0.0, 0.0
        started = mark = time.perf_counter()
        for step, views in enumerate(self.loader):
            waited += time.perf_counter() - mark
            number = epoch * steps + step
            rate = learning_rate(training.schedule, training.optimizer.rate, number, steps, training.epochs)
            loss, embedded = self._step(views, rate)
            losses.append(self._finite(loss, epoch, step))
            if step % LOOKED_AT == 0:
                spreads.append(spread_of(embedded))
            advance(self.sampler.size, loss=f"{sum(losses) / len(losses):.2f}")
            mark = time.perf_counter()
        seconds = time.perf_counter() - started
        is_due = (epoch + 1) % job.probe_every == 0 or epoch + 1 == training.epochs
        return PretrainingRecord(
            epoch=epoch,
            train_loss=sum(losses) / len(losses),
            deviation=sum(spread.deviation for spread in spreads) / len(spreads),
            rank=sum(spread.rank for spread in spreads) / len(spreads),
            neighbours=job.probe.score(self.model.backbone, self.fabric.device) if job.probe and is_due else None,
            learning_rate=rate,
            images_per_second=steps * self.sampler.size / seconds,
            seconds=seconds,
            data_wait=waited / seconds,
        )

    def _step(self, views: Sequence[Tensor], rate: float) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; its loss, and the embeddings of the first view."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        first, second = map(self._embedded, views)
        loss = self.job.loss(first, second)
        self.fabric.backward(loss)
        limit = self.job.study.training.clip_norm or math.inf
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        return loss.detach(), first.detach()

    def _embedded(self, view: Tensor) -> Tensor:
        """One view's embeddings (N, E)."""
        self.statistics.before_batch()
        embedded: Tensor = self.network(view.to(self.fabric.device, non_blocking=True))
        return embedded.float()

    def _finite(self, loss: Tensor, epoch: int, step: int) -> float:
        value = loss.item()
        if math.isfinite(value):
            return value
        lower = self.job.study.training.optimizer.rate / 10
        raise TrainingError(
            f"The loss is not a finite number in epoch {epoch + 1}, step {step + 1}. Lower the learning rate (--set "
            f"training.optimizer.lr={lower:g}); the checkpoints up to epoch {epoch} are kept."
        )


def _refuse_collapse(history: Sequence[PretrainingRecord]) -> None:
    if len(history) < SETTLED:
        return
    last = history[-1]
    if not Spread(last.deviation, last.rank).has_collapsed:
        return
    raise TrainingError(
        f"The embeddings have collapsed in epoch {last.epoch + 1}: they differ by {last.deviation:.2g} (1 where they "
        f"point everywhere) and have rank {last.rank:.2g}, so they tell no images apart and the weights are worth "
        "nothing. Are the images all alike? Else lower the learning rate (--set training.optimizer.lr), or take more "
        "images at once (--set training.batch_size), and start anew with --fresh."
    )


def _save(
    job: Pretraining, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[PretrainingRecord]
) -> None:
    """The checkpoint of the newest epoch; all but the newest two go."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
    facts = {**job.facts, "history": [asdict(record) for record in history]}
    write_tensors(job.folder / f"epoch-{len(history):04d}.safetensors", tensors, facts)
    for old in sorted(job.folder.glob("epoch-*.safetensors"))[:-MAX_CHECKPOINTS]:
        old.unlink()


def _restored(job: Pretraining, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[PretrainingRecord]:
    """The history of the newest whole checkpoint, whose weights are then loaded; empty where there is none.

    Raises TrainingError where it belongs to other settings or images, or where all are damaged.
    """
    files = sorted(job.folder.glob("epoch-*.safetensors"), reverse=True)
    for path in files:
        try:
            tensors, stored = read_tensors(path)
        except TrainingError as error:
            job.reporter.message(f"{error} Going on from the one before.")
            continue
        if {key: stored.get(key) for key in job.facts} != dict(job.facts):
            raise TrainingError(f"{path} belongs to other settings or images; start anew with --fresh.")
        try:
            _load(model, optimizer, tensors)
            return [PretrainingRecord(**record) for record in stored["history"]]
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
            raise TrainingError(
                f"{path} was written by another version of the program and does not fit its network "
                f"({' '.join(str(error).split())[:200]}); start anew with --fresh."
            ) from error
    if files:
        raise TrainingError(
            f"None of the {len(files)} checkpoints in {job.folder} can be read; start anew with --fresh."
        )
    return []


def _load(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    restore_optimizer(optimizer, {name[10:]: value for name, value in tensors.items() if name.startswith("optimizer.")})


def _line(study: Study, record: PretrainingRecord) -> str:
    score = "" if record.neighbours is None else f"  neighbours {record.neighbours:.4f}"
    return (
        f"epoch {record.epoch + 1:>3}/{study.training.epochs}  loss {record.train_loss:.3f}  rank {record.rank:.1f}"
        f"{score}  lr {record.learning_rate:.1e}  {record.images_per_second:.0f} images/s  {record.seconds:.1f} s"
    )

"""One epoch of training, and one look at validation, as one of several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.errors import ConfigError, TrainingError
from medopt.core.reporter import Reporter
from medopt.data.loaders import grouped, predict_loader, train_loader
from medopt.models.resnet import with_table
from medopt.training.fine_tuning import hold_statistics
from medopt.training.job import TrainingJob
from medopt.training.losses import Teacher, build_loss
from medopt.training.optimizers import optimizer_in_force, scores_in_force
from medopt.training.pace import place
from medopt.training.schedules import learning_rate
from medopt.training.step import Stepper, TrainingState, take_optimizer


class Epochs:
    """One process's part of each epoch: its loaders, and its steps."""

    def __init__(
        self,
        job: TrainingJob,
        fabric: Fabric,
        state: TrainingState,
        reporter: Reporter,
        teacher: Teacher | None = None,
    ) -> None:
        self.study, self.fabric, self.state, self.reporter = job.study, fabric, state, reporter
        rank, world = fabric.global_rank, fabric.world_size
        if len(job.val_set.cases) < world:
            raise ConfigError(f"{len(job.val_set.cases)} validation images are fewer than {world} processes.")
        self.loss = build_loss(job.study, job.train_set.cases)
        train, val, device, where = job.train_set, job.val_set, fabric.device, job.study.training.residence
        images = [place(split.files, "disk" if where == "auto" else where, device) for split in (train, val)]
        self.loader, self.sampler = train_loader(job.study, train.cases, images[0], rank, world, device)
        self.val_loader = predict_loader(job.study, val.cases, images[1], rank, world, device)
        self.stepper = Stepper(job.study, fabric, state, self.loss, teacher, say=reporter.message)

    def validate(self) -> tuple[NDArray[np.float64], Tensor]:
        """Logits (N, K) and targets (N, K) of all validation cases, on every process."""
        # Validation's batches have other shapes than training's, which a compiled network is made for.
        eager = torch.compiler.set_stance("force_eager") if self.study.training.compile is True else nullcontext()
        with self.fabric.autocast(), eager:
            return predict_logits(self.state.judged, self.val_loader, self.fabric.device)

    def train(self) -> dict[str, float]:
        """Train one epoch; returns what it measured, the loss over all processes."""
        config, scores, epoch = self.study.training, self.state.scores, len(self.state.history)
        torch.manual_seed(_seed(self.study.seed, epoch, self.fabric.global_rank))  # dropout
        self.sampler.epoch = epoch
        now = optimizer_in_force(self.study, scores)
        if epoch and now != optimizer_in_force(self.study, scores[:-1]):
            take_optimizer(self.study, self.fabric, self.state, scores)
            self.reporter.message(f"From {config.optimizer.name} to {now.name}: no more progress.")
        steps, size = self.sampler.steps, self.sampler.size
        advance = self.reporter.progress(steps * size, f"epoch {epoch + 1}/{config.epochs}")
        self.state.network.train()
        if self.state.tune is not None and self.state.tune.statistics == "frozen":
            hold_statistics(self.state.network)
        told = scores_in_force(self.study, scores)
        check, waited, started = _Check(self.study, epoch, self.fabric.device), 0.0, time.perf_counter()
        mark, rate = started, 0.0
        for step, batch in enumerate(grouped(self.loader, self.sampler.parts)):
            waited += time.perf_counter() - mark
            rate = learning_rate(config.schedule, now.rate, epoch * steps + step, steps, config.epochs, told)
            check.take(*self.stepper.step(batch, rate, size, number=epoch * steps + step))
            advance(size, loss=f"{check.mean:.3f}")
            mark = time.perf_counter()
        loss = check.whole_mean()
        seconds = time.perf_counter() - started
        return {
            "train_loss": loss,
            "learning_rate": rate,
            "images_per_second": steps * size / seconds,
            "seconds": seconds,
            "data_wait": waited / seconds,
        }


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class _Check:
    """Looks at each step's loss and gradient one step later: a GPU is then at work on the next one."""

    def __init__(self, study: Study, epoch: int, device: torch.device) -> None:
        self.study, self.epoch, self.device = study, epoch, device
        self.total, self.steps = 0.0, 0
        self._last: tuple[Tensor, Tensor] | None = None

    def take(self, loss: Tensor, norm: Tensor) -> None:
        """Keep this step's results, and look at those of the step before."""
        self._look()
        self._last = loss, norm

    @property
    def mean(self) -> float:
        """The loss of the steps that were looked at, of this process's images."""
        return self.total / self.steps if self.steps else math.nan

    def whole_mean(self) -> float:
        """The epoch's loss, over all processes."""
        self._look()
        self._last = None
        if not torch.distributed.is_initialized():
            return self.mean
        total = torch.tensor(self.total, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.item() / self.steps

    def _look(self) -> None:
        if self._last is None:
            return
        loss, norm = (value.item() for value in self._last)
        self.total, self.steps = self.total + loss, self.steps + 1
        # Half precision overflows now and then by design: its scaler leaves out such a step by itself.
        if math.isfinite(loss) and (math.isfinite(norm) or self.study.training.precision == "16-mixed"):
            return
        config = self.study.training
        raise TrainingError(
            f"The {'gradient' if math.isfinite(loss) else 'loss'} is not a finite number in epoch {self.epoch + 1}, "
            f"step {self.steps}. Lower the learning rate (--set training.optimizer.lr={config.optimizer.rate / 10:g}) "
            f"or clip more (training.clip_norm); the checkpoints up to epoch {self.epoch} are kept."
        )


Rows = tuple[Tensor, Tensor, Tensor]  # logits (N, K), targets (N, K), indices (N,)


@torch.no_grad()
def predict_logits(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
) -> tuple[NDArray[np.float64], Tensor]:
    """Logits (N, K) in float64 and the targets, on the CPU, rows ordered by the cases' index.

    Each process brings its own cases, none twice, and all get the whole. The model is left in the mode it came in.
    """
    mode = model.training
    model.eval()
    rows = []
    for image, both, index in loader:
        target, table = with_table(model, both)
        logits = model(image.to(device, non_blocking=True), *(one.to(device) for one in table)).float()
        rows.append((logits, target, index))
    model.train(mode)
    parts = _gathered([(logit.cpu(), target.cpu(), index.cpu()) for logit, target, index in rows])
    order = torch.argsort(torch.cat([index for _, _, index in parts]))
    logits = torch.cat([logit for logit, _, _ in parts])[order]
    targets = torch.cat([target for _, target, _ in parts])[order]
    return logits.double().numpy(), targets


def _gathered(rows: list[Rows]) -> list[Rows]:
    if not torch.distributed.is_initialized():
        return rows
    parts: list[list[Rows] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts if part for row in part]

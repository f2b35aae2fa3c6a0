"""What changes while training, and one step of the optimizer: micro-batches, clipping, the moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from medopt.config import FineTune, Study
from medopt.core.errors import TrainingError
from medopt.core.records import EpochRecord
from medopt.models import build_model
from medopt.models.resnet import recompute_blocks, with_table
from medopt.training.fine_tuning import freeze, pull_toward
from medopt.training.hardware import shard
from medopt.training.losses import Loss, Teacher
from medopt.training.memory import ran_out
from medopt.training.norm_statistics import EarlyStatistics
from medopt.training.optimizers import build_optimizer, optimizer_in_force, takes_fused
from medopt.training.sync_batch_norm import share_statistics
from medopt.training.xla import correct_running_variances

UNPROVEN = 3
"""Steps after which memory is taken to suffice, so that nothing is kept any more for beginning a step again."""


@dataclass
class TrainingState:
    """All that changes while training; the learning rate and early stopping follow from `history`.

    `network` and `optimizer` are the model and its optimizer as Fabric wraps them; `average` holds the moving average
    of the weights, `scaler` the loss scale of half precision. `tune` says how a start is tuned, `anchors` are its
    weights where they are pulled toward it.
    """

    model: nn.Module
    network: _FabricModule
    optimizer: _FabricOptimizer
    average: nn.Module | None
    scaler: Any = None
    tune: FineTune | None = None
    anchors: list[Tensor] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)

    @property
    def judged(self) -> nn.Module:
        """The weights that validation and release use: the moving average where there is one."""
        return self.model if self.average is None else self.average

    @property
    def scores(self) -> list[float]:
        """Validation's scores so far."""
        return [record.val_metric for record in self.history]


def start_state(
    study: Study, fabric: Fabric, model: nn.Module | None = None, tune: FineTune | None = None
) -> TrainingState:
    """The study's network with the weights of its seed, or `model`, on Fabric's device, and a fresh optimizer.

    `tune` says how the weights of a start are tuned.
    """
    model = (build_model(study) if model is None else model).to(fabric.device)
    is_spread = isinstance(fabric.strategy, ModelParallelStrategy)
    if not is_spread:  # which takes the plain layout only
        layout = torch.channels_last if study.network_input.dims == 2 else torch.channels_last_3d
        model = model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it; 1.3x on a CPU
    if fabric.world_size > 1:
        model = share_statistics(model)
    correct_running_variances(model, fabric.device)
    if study.training.recompute:
        recompute_blocks(model)
    if tune is not None:
        freeze(model, tune)
    average = copy.deepcopy(model).requires_grad_(False) if study.training.ema_decay else None
    network = fabric.setup_module(model)  # where parameters are spread, they become new ones here
    if average is not None and is_spread:
        average = shard(average, cast(ModelParallelStrategy, fabric.strategy).device_mesh)
    state = TrainingState(model, network, None, average, getattr(fabric.strategy.precision, "scaler", None))  # type: ignore[arg-type]
    state.tune = tune
    if tune is not None and tune.toward_start:
        state.anchors = [parameter.detach().clone() for parameter in state.model.parameters()]
    take_optimizer(study, fabric, state, [])
    return state


def take_optimizer(study: Study, fabric: Fabric, state: TrainingState, scores: list[float]) -> None:
    """Give `state` a fresh optimizer: the one in force after these validation scores."""
    fused = takes_fused(fabric.device.type, state.model, state.scaler)
    optimizer = build_optimizer(optimizer_in_force(study, scores), state.model, state.tune, fused=fused)
    state.optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))


@torch.no_grad()
def update_average(state: TrainingState, decay: float, number: int) -> None:
    """Move the average toward the model after step `number` (from 0), buffers included.

    By 1 - decay, and by more in the first steps, so that the random weights of the start are soon forgotten: what the
    average remembers grows with the steps that there were (Abadi et al. 2016, tf.train.ExponentialMovingAverage).
    """
    if state.average is None:
        return
    pairs = [
        (_local(kept), _local(new))
        for kept, new in zip(_tensors(state.average), _tensors(state.model), strict=True)
        if kept.is_floating_point()
    ]
    kept, new = map(list, zip(*pairs, strict=True))
    torch._foreach_lerp_(kept, new, 1 - min(decay, (1 + number) / (10 + number)))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _local(value: Tensor) -> Tensor:
    """This process's part, where a tensor is spread over several."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over processes, which then all have to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over processes as `like` is."""
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


class Stepper:
    """Steps of one training. The same images give the same step, however many micro-batches or processes share them.

    `at_once` is the maximum of images that pass the network at once, where that is fewer than come; `say` hears where
    memory ran out.
    """

    def __init__(
        self,
        study: Study,
        fabric: Fabric,
        state: TrainingState,
        loss: Loss,
        teacher: Teacher | None = None,
        *,
        at_once: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.fabric, self.state, self.loss = study.training, fabric, state, loss
        self.teacher, self.at_once, self._say = teacher, at_once, say
        self.statistics = EarlyStatistics(state.model) if state.tune is None else None  # a start has its own
        self._compiles, self._steps = study.training.compile is True, 0

    def step(
        self, batch: Sequence[tuple[Tensor, Tensor]], rate: float, images: int | None = None, number: int = 0
    ) -> tuple[Tensor, Tensor]:
        """One step at the learning rate `rate`; returns this process's loss and the norm of the whole gradient.

        `batch` is this process's micro-batches: images (N, C, *size) and targets (N, K), with covariates behind them
        where the study has some. `images` counts those of all
        processes (this one's by default); the loss is the sum over this process's images, divided by that count.
        `number` counts the steps of the training, from 0. Both results stay on the device: looking at them makes a GPU
        wait. Where memory runs out the step begins again with half as many images at once, and so do those after it.
        """
        state, fabric = self.state, self.fabric
        images = images or sum(len(image) for image, _ in batch)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        total = self._gradients(batch, images)
        limit = self.config.clip_norm or math.inf
        norm = fabric.clip_gradients(state.network, state.optimizer, max_norm=limit, error_if_nonfinite=False)
        state.optimizer.step()
        if state.anchors and state.tune is not None:
            pull_toward(list(state.model.parameters()), state.anchors, min(1.0, rate * state.tune.toward_start))
        update_average(state, self.config.ema_decay, number)
        assert norm is not None
        self._steps += 1
        return total, whole(norm)

    def _gradients(self, batch: Sequence[tuple[Tensor, Tensor]], images: int) -> Tensor:
        """Add up the gradients of a step, and return its loss; with fewer images at once where memory runs out."""
        while True:
            seen, buffers = self.statistics.seen if self.statistics else 0, list(self.state.model.buffers())
            before = [buffer.clone() for buffer in buffers] if self._steps < UNPROVEN else []
            try:
                return self._attempt(_split(batch, self.at_once), images)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                most = min(self.at_once or math.inf, max(len(image) for image, _ in batch))
                self.at_once = self._halved(int(most), error)
            for buffer, value in zip(buffers, before, strict=False):  # running statistics
                buffer.copy_(value)
            if self.statistics is not None and before:
                self.statistics.seen = seen
            self.state.optimizer.zero_grad()
            if self.fabric.device.type == "cuda":
                torch.cuda.empty_cache()

    def _halved(self, most: int, error: Exception) -> int:
        """Half as many images at once; raises TrainingError where there is no half, or others wait for this process."""
        device = self.fabric.device
        if most < 4 or self.fabric.world_size > 1:
            raise TrainingError(
                f"Out of memory on {device} with {most} images at once. Set training.micro_batch to fewer, or "
                "training.recompute: true, or make the images smaller (prepare.size); the checkpoints are kept."
            ) from error
        self._say(
            f"out of memory on {device} with {most} images at once: from here on {most // 2}, whose gradients add up "
            f"to the same step. Set training.micro_batch={most // 2} to begin with that."
        )
        return most // 2

    def _attempt(self, batch: Sequence[tuple[Tensor, Tensor]], images: int) -> Tensor:
        state, fabric, total = self.state, self.fabric, None
        state.optimizer.zero_grad()
        for part, (image, target) in enumerate(batch, start=1):
            with fabric.no_backward_sync(state.network, enabled=part < len(batch)):
                on_device = image.to(fabric.device, non_blocking=True)
                goal, table = with_table(state.model, target.to(fabric.device, non_blocking=True))
                self._before_batch()
                logits = state.network(on_device, *table).float()  # (N, K)
                losses = self.loss(logits, goal)
                if self.teacher is not None:
                    with fabric.autocast():
                        answers = self.teacher.answers(on_device, goal, *table)
                    losses = self.teacher.joined(losses, logits, answers)
                share = losses.sum() / images
                fabric.backward(share * fabric.world_size)  # the processes' gradients are averaged, not summed
            total = share.detach() if total is None else total + share.detach()
        assert total is not None
        return total

    def _before_batch(self) -> None:
        """Set the momentum of the running statistics; compile once it stays, as each value is a kernel of its own."""
        if self.statistics is not None and not self.statistics.are_settled:
            self.statistics.before_batch()
        elif self._compiles:
            self.state.model.compile(dynamic=False)
            self._compiles = False


def _split(batch: Sequence[tuple[Tensor, Tensor]], at_once: int | None) -> Sequence[tuple[Tensor, Tensor]]:
    """Micro-batches of at most `at_once` images, none of them of a single one."""
    if at_once is None:
        return batch
    parts = [max(1, min(-(-len(image) // at_once), len(image) // 2)) for image, _ in batch]
    return [
        pair
        for (image, target), count in zip(batch, parts, strict=True)
        for pair in zip(image.tensor_split(count), target.tensor_split(count), strict=True)
    ]

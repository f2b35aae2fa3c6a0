"""One step of the optimizer: micro-batches whose gradients add up, clipping, the moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_fabric import Fabric
from torch import Tensor

from medopt.config import Study
from medopt.training.distillation import Teacher
from medopt.training.losses import Loss
from medopt.training.state import TrainingState, update_average, whole


class Stepper:
    """Steps of one training. The same images give the same step, however many micro-batches or processes share them."""

    def __init__(
        self, study: Study, fabric: Fabric, state: TrainingState, loss: Loss, teacher: Teacher | None = None
    ) -> None:
        self.config, self.fabric, self.state, self.loss = study.training, fabric, state, loss
        self.teacher = teacher

    def step(
        self, batch: Sequence[tuple[Tensor, Tensor]], rate: float, images: int | None = None, number: int = 0
    ) -> tuple[Tensor, Tensor]:
        """One step at the learning rate `rate`; returns this process's loss and the norm of the whole gradient.

        `batch` is this process's micro-batches: images (N, C, *size) and targets (N, K). `images` counts those of all
        processes (this one's by default); the loss is the sum over this process's images, divided by that count.
        `number` counts the steps of the training, from 0. Both results stay on the device: looking at them makes a GPU
        wait.
        """
        state, fabric = self.state, self.fabric
        images = images or sum(len(image) for image, _ in batch)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad()
        total = None
        for part, (image, target) in enumerate(batch, start=1):
            with fabric.no_backward_sync(state.network, enabled=part < len(batch)):
                seen, truth = (one.to(fabric.device, non_blocking=True) for one in (image, target))
                wanted = truth if self.teacher is None else self.teacher.targets(seen, truth)
                logits = state.network(seen)  # (N, K)
                share = self.loss(logits.float(), wanted).sum() / images
                fabric.backward(share * fabric.world_size)  # the processes' gradients are averaged, not summed
            total = share.detach() if total is None else total + share.detach()
        limit = self.config.clip_norm or math.inf
        norm = fabric.clip_gradients(state.network, state.optimizer, max_norm=limit, error_if_nonfinite=False)
        state.optimizer.step()
        update_average(state, self.config.ema_decay, number)
        assert total is not None and norm is not None
        return total, whole(norm)

"""How the study's network begins to train, by initialization, with and without what makes deep nets trainable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from pydantic import JsonValue
from torch import Tensor

from medopt.config import Study
from medopt.core.records import Case
from medopt.core.reporter import Reporter, SilentReporter
from medopt.data.loaders import KeyedDataset
from medopt.models.signal_propagation import Depth, Scale, Variant, build_variant, measure_scale, variants
from medopt.training.hardware import open_fabric
from medopt.training.losses import Loss, build_loss
from medopt.training.step import Stepper, start_state

DEEPEST: Depth = 152
USUAL_RATE = 1e-3
"""For studies whose rate is still to be found."""


@dataclass(frozen=True, slots=True)
class InitResult:
    """One net at its start: its scales by depth, and the loss of each of the first steps on one batch.

    The steps end at the first loss that is not finite.
    """

    variant: Variant
    scale: Scale
    losses: tuple[float, ...]

    @property
    def fell(self) -> float:
        """The last loss over the first; not a number where a loss was not finite."""
        return self.losses[-1] / self.losses[0] if math.isfinite(self.losses[-1]) else math.nan

    def json_values(self) -> dict[str, JsonValue]:
        """As JSON holds it: what is not finite becomes null."""

        def finite(values: Sequence[float]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in values]

        scale = {name: finite(values) for name, values in asdict(self.scale).items()}
        named = asdict(self.variant) | {"kind": self.variant.description}
        return named | scale | {"losses": finite(self.losses), "ratio": finite([self.scale.ratio])[0]}


def compare_initializations(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path],
    *,
    depths: Sequence[Depth] | None = None,
    images: int = 8,
    steps: int = 10,
    reporter: Reporter | None = None,
) -> tuple[InitResult, ...]:
    """He and Xavier at the study's depth and at 152 layers: scales of one batch, then `steps` steps on it.

    The batch is drawn from the training `cases` by the study's seed, and not augmented. The steps are the study's own
    (optimizer, rate, clipping), without its moving average.
    """
    depths = tuple(dict.fromkeys(depths or (study.model.depth, DEEPEST)))
    nets = [net for depth in depths for init in ("he", "xavier") for net in variants(depth, init)]
    study = _plainly(study)
    fabric = open_fabric(study.training)
    image, target = _batch(study, cases, files, images)
    loss = build_loss(study, cases)
    advance = (reporter or SilentReporter()).progress(len(nets), "nets")
    results = []
    for net in nets:
        results.append(_begin(study, fabric, net, image.to(fabric.device), target.to(fabric.device), loss, steps))
        advance(1, net=net.name)
    return tuple(results)


def _plainly(study: Study) -> Study:
    """The study with a rate that is a number, without a moving average, a switch of optimizers or covariates."""
    optimizer = study.training.optimizer
    if optimizer.lr == "auto":
        optimizer = optimizer.model_copy(update={"lr": USUAL_RATE})
    changed = {"optimizer": optimizer, "ema_decay": 0.0, "switch": None}
    data = study.data.model_copy(update={"covariates": []})
    return study.model_copy(update={"training": study.training.model_copy(update=changed), "data": data})


def _batch(study: Study, cases: Sequence[Case], files: Sequence[Path], images: int) -> tuple[Tensor, Tensor]:
    chosen = np.random.default_rng(study.seed).permutation(len(cases))[:images].tolist()
    data = KeyedDataset(study, cases, files)
    rows = [data[(-1, index, 0)] for index in chosen]
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def _begin(
    study: Study, fabric: Fabric, net: Variant, image: Tensor, target: Tensor, loss: Loss, steps: int
) -> InitResult:
    model = build_variant(study, net).to(fabric.device)
    scale = measure_scale(model, image, target, loss)
    losses: list[float] = []
    stepper = Stepper(study, fabric, start_state(study, fabric, model), loss)
    stepper.state.network.train()
    while len(losses) < steps and (not losses or math.isfinite(losses[-1])):
        losses.append(float(stepper.step([(image, target)], study.training.optimizer.rate)[0]))
    return InitResult(net, scale, tuple(losses))

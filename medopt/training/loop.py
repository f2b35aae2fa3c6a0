"""The training loop, on one screen, over Lightning Fabric (device and precision).

Whatever is killed goes on at the last whole epoch: shuffling and augmentation follow from (seed, epoch, index), the
learning rate and early stopping from the history, and the checkpoint holds the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from medopt.config import Study
from medopt.data.loaders import make_loader
from medopt.errors import ConfigError, TrainingError
from medopt.models import build_model
from medopt.records import Case, EpochRecord, Reporter, SilentReporter
from medopt.training.checkpoint import TrainingState, read_tensors, restore_newest, save_best, save_epoch
from medopt.training.losses import Loss, build_loss
from medopt.training.optimizers import build_optimizer
from medopt.training.predict import predict_logits
from medopt.training.schedules import learning_rate
from medopt.training.stopping import best_epoch, should_stop

Score = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
BEST = "best.safetensors"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Cases of one split with the files of their prepared images."""

    cases: Sequence[Case]
    files: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Trained:
    """The best weights' file, and what every epoch measured."""

    weights: Path
    history: tuple[EpochRecord, ...]
    best: int
    device: str


def train(
    study: Study,
    train_set: Prepared,
    val_set: Prepared,
    folder: Path,
    *,
    facts: Mapping[str, str],
    score: Score,
    on_epoch: Callable[[Sequence[EpochRecord]], None] = lambda history: None,
    reporter: Reporter | None = None,
) -> Trained:
    """Train, or go on training, in `folder`; `score` maps (logits (N, K), targets) to the validation metric.

    `facts` (study, chain and data digests) go into every checkpoint; one with other facts is refused.
    `on_epoch` hears the whole history once at the start and after every epoch, when its checkpoint is on disk.
    Raises TrainingError where the loss is not a number or no epoch gave a defined metric.
    """
    reporter = reporter or SilentReporter()
    fabric = _fabric(study)
    torch.manual_seed(study.seed)
    state = _start(study, fabric)
    restore_newest(folder, state, facts, reporter.message)
    on_epoch(state.history)
    loss = build_loss(study, train_set.cases)
    loader, sampler = make_loader(study, train_set.cases, train_set.files, train=True)
    model, optimizer = fabric.setup(state.model, state.optimizer)
    engine = _Engine(study, fabric, state, model, optimizer, loader, loss, reporter)
    val_loader, _ = make_loader(study, val_set.cases, val_set.files, train=False)
    while len(state.history) < study.training.epochs:
        scores = [record.val_metric for record in state.history]
        if should_stop(scores, study.training.patience):
            reporter.message(f"Stopped early: no progress in {study.training.patience} epochs.")
            break
        sampler.epoch = len(state.history)
        started = time.perf_counter()
        measured = _train_epoch(engine, scores)
        seconds = time.perf_counter() - started
        logits, targets = predict_logits(state.judged, val_loader, fabric.device)
        val_loss = float(loss(torch.from_numpy(logits).float(), targets))
        metric = score(logits, targets.double().numpy()) if study.training.metric == "auc" else -val_loss
        record = EpochRecord(epoch=len(scores), val_loss=val_loss, val_metric=metric, seconds=seconds, **measured)
        state.history.append(record)
        is_best = best_epoch([*scores, metric]) == record.epoch
        reporter.message(_epoch_line(study, record, is_best))
        if is_best:
            save_best(folder / BEST, state, facts)
        save_epoch(folder, state, facts)
        on_epoch(state.history)
    best = best_epoch([record.val_metric for record in state.history])
    if best is None:
        raise TrainingError("No epoch gave a defined validation metric; is one class absent from validation?")
    return Trained(folder / BEST, tuple(state.history), best, str(fabric.device))


def _epoch_line(study: Study, record: EpochRecord, is_best: bool) -> str:
    score = f"val {study.training.metric} {abs(record.val_metric):.4f}{' *' if is_best else '  '}"
    return (
        f"epoch {record.epoch + 1:>3}/{study.training.epochs}  train loss {record.train_loss:.4f}  "
        f"val loss {record.val_loss:.4f}  {score}  lr {record.learning_rate:.1e}  "
        f"{record.images_per_second:.0f} images/s  {record.seconds:.1f} s"
    )


def load_best(study: Study, weights: Path) -> nn.Module:
    """The study's network with its best weights, on the CPU, in evaluation mode."""
    model = build_model(study)
    model.load_state_dict(read_tensors(weights)[0])
    return model.eval()


def _fabric(study: Study) -> Fabric:
    accelerator, precision = study.training.accelerator, study.training.precision
    cuda = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "auto":
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32-true"
    try:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    except (RuntimeError, ValueError) as error:  # Fabric's own refusals are both
        raise ConfigError(
            f"Training on {accelerator} with {precision} is not possible here ({' '.join(str(error).split())[:200]}). "
            "Let training.accelerator and training.precision be auto."
        ) from error


def _start(study: Study, fabric: Fabric) -> TrainingState:
    model = build_model(study).to(fabric.device)
    layout = torch.channels_last if study.spatial_dims == 2 else torch.channels_last_3d
    model = model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it; 1.3x on a CPU
    average = None
    if study.training.ema_decay:
        update = get_ema_multi_avg_fn(study.training.ema_decay)
        average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return TrainingState(model, build_optimizer(study.training.optimizer, model), average, [])


@dataclass(frozen=True, slots=True)
class _Engine:
    """What an epoch needs: the state, its model and optimizer as Fabric wrapped them, the data, the loss."""

    study: Study
    fabric: Fabric
    state: TrainingState
    model: nn.Module
    optimizer: Optimizer
    loader: DataLoader[tuple[Tensor, Tensor, int]]
    loss: Loss
    reporter: Reporter


def _train_epoch(engine: _Engine, scores: list[float]) -> dict[str, float]:
    config, epoch, steps = engine.study.training, len(scores), len(engine.loader)
    advance = engine.reporter.progress(steps * config.batch_size, f"epoch {epoch + 1}/{config.epochs}")
    engine.model.train()
    total = waited = seen = 0.0
    started = mark = time.perf_counter()
    for step, (image, target, _) in enumerate(engine.loader):
        waited += time.perf_counter() - mark
        rate = learning_rate(config.schedule, config.optimizer.lr, epoch * steps + step, steps, config.epochs, scores)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        current, norm = _step(engine, image, target)
        if not math.isfinite(current + norm):
            what = "gradient" if math.isfinite(current) else "loss"
            raise TrainingError(
                f"The {what} is not a finite number in epoch {epoch + 1}, step {step + 1}. Lower the learning rate "
                f"(--set training.optimizer.lr={config.optimizer.lr / 10:g}) or clip more (training.clip_norm); "
                f"the checkpoints up to epoch {epoch} are kept."
            )
        total, seen = total + current * len(image), seen + len(image)
        advance(len(image), loss=f"{total / seen:.3f}")
        mark = time.perf_counter()
    seconds = time.perf_counter() - started
    return {
        "train_loss": total / seen,
        "learning_rate": rate,
        "images_per_second": seen / seconds,
        "data_wait": waited / seconds,
    }


def _step(engine: _Engine, image: Tensor, target: Tensor) -> tuple[float, float]:
    """One step of the optimizer, left out where the loss or its gradient is not finite; the loss and that norm."""
    fabric, config = engine.fabric, engine.study.training
    value = engine.loss(engine.model(image.to(fabric.device)), target.to(fabric.device))  # logits (N, K)
    engine.optimizer.zero_grad()
    fabric.backward(value)
    limit = config.clip_norm or math.inf
    found = fabric.clip_gradients(engine.model, engine.optimizer, max_norm=limit, error_if_nonfinite=False)
    # Half precision overflows now and then by design: its scaler leaves out such a step by itself.
    norm = 0.0 if config.precision == "16-mixed" or found is None else found.item()
    if math.isfinite(value.item() + norm):
        engine.optimizer.step()
        if isinstance(engine.state.average, AveragedModel):
            engine.state.average.update_parameters(engine.state.model)
    return value.item(), norm

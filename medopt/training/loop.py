"""The training loop, on one screen.

Whatever is killed goes on at the last whole epoch: shuffling, augmentation and dropout follow from (seed, epoch,
index), the learning rate, the optimizer and early stopping from the history, and the checkpoint holds the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medopt.config import Model, Study
from medopt.core.errors import TrainingError
from medopt.core.records import EpochRecord
from medopt.core.reporter import SilentReporter
from medopt.models import build_model
from medopt.models.channel_widths import WIDTHS, Widths, narrow_model
from medopt.models.resnet import network_note
from medopt.models.starts.files import ARCHITECTURE
from medopt.training.checkpoint import read_tensors, restore_newest, save_best, save_epoch
from medopt.training.covariates import fit_table, put_coefficients
from medopt.training.early_stopping import should_stop
from medopt.training.epoch import Epochs
from medopt.training.gpu_use import peak_gib, watched_utilisation
from medopt.training.job import BEST, Trained, TrainingCallbacks, TrainingJob
from medopt.training.kept_epoch import KeptEpoch, kept_epoch
from medopt.training.losses import Teacher, build_loss
from medopt.training.pace import settle
from medopt.training.step import TrainingState, start_state, take_optimizer

TEACHERS = "models"  # the note of a file of teachers that says how each network is built


def fit(job: TrainingJob, fabric: Fabric, callbacks: TrainingCallbacks | None) -> Trained:
    """Train, or go on training, as one of Fabric's processes; only the first of them has `callbacks`.

    Raises TrainingError where the loss is not a number, or no epoch gave a defined metric.
    """
    reporter = callbacks.reporter if callbacks else SilentReporter()
    job, pace = settle(job, fabric, reporter)
    for reason in pace.reasons:
        reporter.message(reason)
    study, facts = job.study, job.facts
    tune = study.training.fine_tune if job.tunes_start else None
    state = start_state(study, fabric, _first_network(job), tune)
    restore_newest(
        job.folder, state, facts, reporter.message, lambda scores: take_optimizer(study, fabric, state, scores)
    )
    if callbacks:
        callbacks.on_epoch(state.history)
    epochs = Epochs(job, fabric, state, reporter, _teacher(job, fabric))
    while len(state.history) < study.training.epochs:
        if should_stop(state.scores, study.training.patience):
            reporter.message(f"Stopped early: no progress in {study.training.patience} epochs.")
            break
        record = _one_epoch(job, fabric, epochs, callbacks)
        state.history.append(record)
        kept = kept_epoch(study.training, state.history)
        is_kept = kept is not None and kept.index == len(state.history) - 1
        reporter.message(_epoch_line(study, record, is_kept))
        if is_kept:
            _keep(job, state, callbacks)
        save_epoch(job.folder, state, facts, write=callbacks is not None)
        if callbacks:
            callbacks.on_epoch(state.history)
    kept = _kept_at_the_end(job, fabric, state, callbacks)
    reporter.message(f"The weights of epoch {kept.index + 1} of {len(state.history)} are kept: {kept.reason}.")
    return Trained(job.folder / BEST, tuple(state.history), kept.index, str(fabric.device), kept.reason, pace.measured)


def _first_network(job: TrainingJob) -> nn.Module | None:
    """The network that training begins with, where more is known of it than the study's seed."""
    if job.start:
        return load_best(job.study, job.start)
    if not job.study.data.covariates:
        return None
    network = build_model(job.study)
    put_coefficients(network, fit_table(job.study, job.train_set.cases, job.val_set.cases).weight)
    return network


def _keep(job: TrainingJob, state: TrainingState, callbacks: TrainingCallbacks | None) -> None:
    """Keep the weights of the epoch that the history ends with."""
    facts = {**job.facts, **architecture_note(job.study)}
    save_best(job.folder / BEST, state, facts, write=callbacks is not None)


def _kept_at_the_end(
    job: TrainingJob, fabric: Fabric, state: TrainingState, callbacks: TrainingCallbacks | None
) -> KeptEpoch:
    """The epoch whose weights are kept, and what is left to do for that.

    It is another one than the rule's only where version 0.1.0 chose it: no file holds the weights of other epochs.
    Raises TrainingError where no epoch has a defined metric.
    """
    kept = kept_epoch(job.study.training, state.history)
    if kept is None:
        raise TrainingError("No epoch gave a defined validation metric; is one class absent from validation?")
    noted = fabric.broadcast(_noted_epoch(job.folder / BEST) if callbacks else None)
    if noted == kept.index:
        return kept
    if kept.index == len(state.history) - 1:
        _keep(job, state, callbacks)
        return kept
    if noted is None:  # the linear model of a start took their place; or the file is damaged, which its reader says
        return kept
    return KeptEpoch(noted, "the best by the metric of that epoch alone, as an earlier version chose it")


def _noted_epoch(weights: Path) -> int | None:
    """The epoch, from 0, that a file of kept weights is of; None where there is none that can be read."""
    try:
        return int(read_tensors(weights)[1]["epoch"])
    except (TrainingError, KeyError):
        return None


def architecture_note(study: Study) -> dict[str, Any]:
    """What the shapes of the weights do not tell of the network, for studies that begin with it."""
    return {ARCHITECTURE: network_note(study)}


def _teacher(job: TrainingJob, fabric: Fabric) -> Teacher | None:
    """The network that this one learns from, where it learns from one."""
    if job.teacher is None or not job.teacher_share:
        return None
    tensors, facts = read_tensors(job.teacher)
    networks = []
    for number, own in enumerate(facts.get(TEACHERS, ())):
        study = job.study.model_copy(update={"model": Model.model_validate(own)})
        mine = {name.removeprefix(f"{number}."): one for name, one in tensors.items() if name.startswith(f"{number}.")}
        networks.append(_loaded(study, mine, {}, job.teacher))
    if not networks:  # of a network that is pruned: the study's own
        networks = [_loaded(job.study, tensors, facts, job.teacher)]
    loss = build_loss(job.study, job.train_set.cases, of_answers=True)
    teachers = [network.to(fabric.device) for network in networks]
    return Teacher(teachers, job.teacher_share, loss, task=job.study.data.task)


def _one_epoch(job: TrainingJob, fabric: Fabric, epochs: Epochs, callbacks: TrainingCallbacks | None) -> EpochRecord:
    """Train and validate once; the first process judges, and tells the others."""
    with watched_utilisation(fabric.device) as samples:
        measured = epochs.train()
    logits, targets = epochs.validate()
    record = None
    if callbacks:
        val_loss = float(epochs.loss(torch.from_numpy(logits).float(), targets).mean())
        metric = -val_loss
        if job.study.training.metric == "auc":
            metric = callbacks.score(logits, targets.double().numpy())
        record = EpochRecord(
            epoch=len(epochs.state.history),
            val_loss=val_loss,
            val_metric=metric,
            gpu_use=fmean(samples) if samples else None,
            gpu_gib=peak_gib(fabric.device),
            **measured,
        )
    shared: EpochRecord | None = fabric.broadcast(record)
    assert shared is not None
    return shared


def _epoch_line(study: Study, record: EpochRecord, is_kept: bool) -> str:
    shown = -record.val_metric if study.training.metric == "loss" else record.val_metric
    score = f"val {study.metric_name} {shown:.4f}{' *' if is_kept else '  '}"
    return (
        f"epoch {record.epoch + 1:>3}/{study.training.epochs}  train loss {record.train_loss:.4f}  "
        f"val loss {record.val_loss:.4f}  {score}  lr {record.learning_rate:.1e}  "
        f"{record.images_per_second:.0f} images/s  {record.seconds:.1f} s"
    )


def load_best(study: Study, weights: Path) -> nn.Module:
    """The study's network with the weights that were kept, on the CPU, in evaluation mode.

    Those of a pruned network say how wide its layers are. Raises TrainingError where the weights are not the study's.
    """
    return _loaded(study, *read_tensors(weights), weights)


def _loaded(study: Study, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], weights: Path) -> nn.Module:
    widths = facts.get(WIDTHS)
    model = narrow_model(study, Widths.from_json(widths)) if widths else build_model(study)
    try:
        model.load_state_dict(tensors)
    except RuntimeError:  # its message has a line for each tensor
        other = sum(name not in tensors or tensors[name].shape != own.shape for name, own in model.state_dict().items())
        raise TrainingError(
            f"{weights} is not the network of this study as this version builds it ({other} tensors differ): another "
            "study's, or trained by another version of medopt. Train it anew with `medopt run`, or use that version."
        ) from None
    return model.eval()

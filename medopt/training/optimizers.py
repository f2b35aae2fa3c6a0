"""Adam, AdamW, SGD with momentum and Nadam, by name, and the switch from one to another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn, optim

from medopt.config import Optimizer, Study
from medopt.training.early_stopping import first_plateau


def build_optimizer(config: Optimizer, model: nn.Module) -> optim.Optimizer:
    """The optimizer over all parameters; normalizations and biases get no weight decay.

    Sources: Kingma & Ba (2015), Loshchilov & Hutter (2019), Sutskever et al. (2013), Dozat (2016).
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (config.momentum, 0.999)
    match config.name:
        case "adam":
            return optim.Adam(groups, lr=config.rate, betas=betas)
        case "adamw":
            return optim.AdamW(groups, lr=config.rate, betas=betas)
        case "nadam":
            return optim.NAdam(groups, lr=config.rate, betas=betas)
        case "sgd":
            return optim.SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=config.momentum > 0)


def optimizer_in_force(study: Study, scores: Sequence[float]) -> Optimizer:
    """Which optimizer takes the next epoch, after these validation scores: a function of the history alone.

    The first one until `switch.patience` epochs in a row brought no progress, the second from then on (Keskar & Socher
    2017).
    """
    switch = study.training.switch
    if switch is None or first_plateau(scores, switch.patience) is None:
        return study.training.optimizer
    return switch.to

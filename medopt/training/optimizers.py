"""Adam, AdamW, SGD with momentum and Nadam, by name."""

from __future__ import annotations

from torch import nn, optim

from medopt.config import Optimizer


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
            return optim.Adam(groups, lr=config.lr, betas=betas)
        case "adamw":
            return optim.AdamW(groups, lr=config.lr, betas=betas)
        case "nadam":
            return optim.NAdam(groups, lr=config.lr, betas=betas)
        case "sgd":
            return optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)

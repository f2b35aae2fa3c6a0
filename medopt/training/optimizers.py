"""Adam, AdamW, SGD with momentum and Nadam, by name, and the switch from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn, optim
from torch.distributed.tensor import DTensor

from medopt.config import FineTune, Optimizer, Study
from medopt.training.early_stopping import first_plateau
from medopt.training.fine_tuning import rate_factor


def build_optimizer(
    config: Optimizer, model: nn.Module, tune: FineTune | None = None, *, fused: bool = False
) -> optim.Optimizer:
    """The optimizer over all parameters that learn; normalizations and biases get no weight decay.

    With `tune` each stage of the network is a group of its own, whose `factor` its learning rate is multiplied by.
    `fused`: one kernel for all parameters, where torch has one; the steps are the same to rounding.
    Sources: Kingma & Ba (2015), Loshchilov & Hutter (2019), Sutskever et al. (2013), Dozat (2016).
    """
    groups = _groups(config, model, tune)
    betas, one_kernel = (config.momentum, 0.999), True if fused else None
    match config.name:
        case "adam":
            return optim.Adam(groups, lr=config.rate, betas=betas, fused=one_kernel)
        case "adamw":
            return optim.AdamW(groups, lr=config.rate, betas=betas, fused=one_kernel)
        case "nadam":
            return optim.NAdam(groups, lr=config.rate, betas=betas)  # torch has no fused one
        case "sgd":
            nesterov = config.momentum > 0
            return optim.SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=nesterov, fused=one_kernel)


def takes_fused(device: str, model: nn.Module, scaler: Any = None) -> bool:
    """Whether one kernel steps all parameters: on a CPU or a GPU of NVIDIA, where they are whole.

    Not with a loss scale: a fused optimizer takes the scale away itself, which would be after clipping. For a ResNet-50
    of full width AdamW's kernel on a CPU takes a fifth of the time.
    """
    is_spread = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return device in ("cpu", "cuda") and scaler is None and not is_spread


def _groups(config: Optimizer, model: nn.Module, tune: FineTune | None) -> list[dict[str, Any]]:
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {} if tune else {(1.0, True): [], (1.0, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (rate_factor(tune, name) if tune else 1.0, parameter.ndim > 1)
            kinds.setdefault(key, []).append(parameter)
    decays = {True: config.weight_decay, False: 0.0}
    return [
        {"params": parameters, "weight_decay": decays[is_matrix], "factor": factor}
        for (factor, is_matrix), parameters in kinds.items()
    ]


def optimizer_in_force(study: Study, scores: Sequence[float]) -> Optimizer:
    """Which optimizer takes the next epoch, after these validation scores: a function of the history alone.

    The first one until `switch.patience` epochs in a row brought no progress, the second from then on (Keskar & Socher
    2017).
    """
    switch = study.training.switch
    if switch is None or first_plateau(scores, switch.patience) is None:
        return study.training.optimizer
    return switch.to


def scores_in_force(study: Study, scores: Sequence[float]) -> Sequence[float]:
    """The validation scores that a plateau of the rate is told by: those of the optimizer that is in force.

    Else the second optimizer would begin at a rate that the first one's lack of progress has lowered already.
    """
    switch = study.training.switch
    switched = first_plateau(scores, switch.patience) if switch else None
    return scores if switched is None else scores[switched:]

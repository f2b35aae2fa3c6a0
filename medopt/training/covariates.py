"""The model of the covariates alone, and the coefficients that a trained network has for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from medopt.config import Study
from medopt.core.covariates import CovariateTerm
from medopt.core.records import Case
from medopt.data.loaders import target_of
from medopt.manifest.covariates import CovariateEncoder, encoder_of
from medopt.training.checkpoint import read_tensors
from medopt.training.linear_model import LinearFit, LinearModel, choose_strength
from medopt.training.losses import build_loss

COEFFICIENTS = "covariates"  # the network's tensor of them
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse penalties: of a few columns, where those of thousands of features would hold all coefficients near 0."""


def fit_table(study: Study, train: Sequence[Case], val: Sequence[Case]) -> LinearModel:
    """The linear model of the encoded covariates alone: logistic, multinomial, or of a number ridge regression.

    Its penalty is the one whose loss on validation is lowest: an AUC cannot tell penalties of a single column apart.
    """
    encoder = cast(CovariateEncoder, encoder_of(study))
    targets, wanted = (torch.stack([target_of(study, case) for case in part]) for part in (train, val))
    fit = LinearFit(encoder.table(train), targets.double().numpy(), study.data.task)
    loss, rows = build_loss(study, train, of_answers=True), encoder.table(val)

    def score(model: LinearModel) -> float:
        return -float(loss(torch.from_numpy(model.logits(rows)).float(), wanted).mean())

    return choose_strength(fit, score, STRENGTHS)[0]


@torch.no_grad()
def put_coefficients(network: nn.Module, weight: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """Set a network's coefficients of the encoded covariates (K, F), in place."""
    cast(nn.Parameter, network.covariates).copy_(torch.from_numpy(weight.T.copy()).float())


def term_of(study: Study, weights: Path) -> CovariateTerm | None:
    """The coefficients in a file of a network's weights; None where the study has no covariates.

    Raises TrainingError where the file cannot be read.
    """
    encoder = encoder_of(study)
    if encoder is None:
        return None
    return CovariateTerm.of(encoder.names, read_tensors(weights)[0][COEFFICIENTS].double().numpy())

"""By how much class weights and balanced sampling move a network's logits: the log of the prior that they pretend.

A network whose training counts or draws a class w times as often learns odds that are w times too high. The shift is
known from the training cases alone, so that it can be taken back where validation has too few cases to fit it.
Source: Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities (2002).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.records import Case, is_exclusive, label_table
from medopt.data.samplers import balanced_chances
from medopt.training.losses import class_weights


def prior_shift(study: Study, cases: Sequence[Case]) -> tuple[float, ...]:
    """What to subtract from each output's logits (K,), by the training `cases`; () where nothing moves them.

    Of classes that exclude each other the mean is 0. Where the network learns from a teacher that saw no weights, these
    move only the labels' share of its targets; with balanced sampling that is exact for rare classes.
    """
    weights, ratios = class_weights(study, cases), np.ones((2, study.data.outputs))
    if study.training.sampling == "balanced":
        ratios = _sampling_ratios(study, cases)
    kept = study.training.teacher_share if study.training.teachers else 0.0
    absent, present = ((1 - kept) * one + kept for one in (weights * ratios))
    exclusive = is_exclusive(study.data.task)
    shift = np.log(present) - np.log(present).mean() if exclusive else np.log(present / absent)
    return tuple(shift.tolist()) if np.abs(shift).max() > 1e-9 else ()


def _sampling_ratios(study: Study, cases: Sequence[Case]) -> NDArray[np.float64]:
    """How much more often a label's absence and presence are drawn (2, K) than by shuffling; the more frequent is 1."""
    labels, chances = label_table(cases), balanced_chances(study, cases)
    if is_exclusive(study.data.task):
        counts = np.bincount(labels[:, 0].astype(np.int64), minlength=study.data.outputs)
        drawn = counts.max() / np.maximum(counts, 1)
        return np.stack([np.ones_like(drawn), drawn])
    found = np.ones((2, labels.shape[1]))
    for output, column in enumerate(labels.T):
        has = np.stack([column == 0, column == 1])
        if has.any(axis=1).all():
            drawn = (has * chances).sum(axis=1) / has.mean(axis=1)
            found[:, output] = drawn / drawn[has.sum(axis=1).argmax()]
    return found

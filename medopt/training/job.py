"""What is to be trained, what the first process does beside it, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.records import Case, EpochRecord
from medopt.core.reporter import Reporter, SilentReporter

Score = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
BEST = "best.safetensors"


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """Cases of one split with the files of their prepared images."""

    cases: Sequence[Case]
    files: Sequence[Path]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is to be trained on what, and where to: all that another process has to know.

    `facts` (study, chain and data digests) go into every checkpoint; one with other facts is refused. `start` are the
    weights to begin with, of the study's network or of a pruned one, whose widths then have to be among the facts;
    without it they are drawn from the study's seed. `teacher` are those of a network whose answers are targets, too, to
    the share `teacher_share`. `tunes_start`: `start` are pretrained weights; the study's `training.fine_tune` says how
    to tune them.
    """

    study: Study
    train_set: PreparedSplit
    val_set: PreparedSplit
    folder: Path
    facts: Mapping[str, str]
    start: Path | None = None
    teacher: Path | None = None
    teacher_share: float = 0.0
    tunes_start: bool = False


@dataclass(frozen=True, slots=True)
class TrainingCallbacks:
    """What the first process does alone: it judges, shows and keeps what an epoch brought.

    `score` maps (logits (N, K), targets (N, K)) to the validation metric. `on_epoch` hears the whole history once at
    the start and after every epoch, when its checkpoint is on disk.
    """

    score: Score
    on_epoch: Callable[[Sequence[EpochRecord]], None] = lambda history: None
    reporter: Reporter = field(default_factory=SilentReporter)


@dataclass(frozen=True, slots=True)
class Trained:
    """The file of the kept weights, what every epoch measured, and which epoch (from 0) was kept and why.

    `speeds`: images a second of the ways to train that were timed before.
    """

    weights: Path
    history: tuple[EpochRecord, ...]
    best: int
    device: str
    reason: str = ""
    speeds: Mapping[str, float] = field(default_factory=dict)

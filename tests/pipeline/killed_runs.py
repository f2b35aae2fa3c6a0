"""A training in a process of its own, forked from one that has imported everything, so that many can be killed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from medopt.config.study_file import load_study
from medopt.core.reporter import SilentReporter
from medopt.pipeline.run import train_study


def train_once(study_file: Path, data: Path, runs: Path, overrides: list[str]) -> None:
    os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    study = load_study(study_file, overrides)
    train_study(study, study_file, data, runs, SilentReporter(), "", lambda history: None)

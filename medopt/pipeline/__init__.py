"""The stages of a run in order: what is unchanged is skipped, what was interrupted goes on."""

from medopt.pipeline.runner import run_study, train_study
from medopt.pipeline.study_cases import plan_run

__all__ = ["plan_run", "run_study", "train_study"]

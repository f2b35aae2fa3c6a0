"""The stages of a run in order: what is unchanged is skipped, what was interrupted goes on."""

from medopt.pipeline.plan import plan_run
from medopt.pipeline.run import run_study, train_study

__all__ = ["plan_run", "run_study", "train_study"]

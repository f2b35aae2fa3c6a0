"""`sweep.json`: the trials of a sweep over settings, and the best of them on validation."""

from __future__ import annotations

from medopt.core.result import Result

Setting = bool | int | float | str | None


class SweepTrial(Result):
    """One trial: how it ended (complete, pruned, fail, ...), its best score on validation, and its settings.

    `values` are those of the swept parameters by their paths, `overrides` the same as `--set` takes them; `reason` says
    why it failed or was given up.
    """

    trial: int
    state: str
    score: float | None
    epochs: int
    values: dict[str, Setting]
    overrides: tuple[str, ...]
    folder: str
    reason: str


class SweepEpochs(Result):
    """Epochs that were trained, and that would have been without giving trials up."""

    trained: int
    without_pruning: int


class SweepSummary(Result):
    """All trials in the order in which they began; `best` is None where none came to its end.

    `importance` says how much each parameter decides about the score; it is empty with few trials. `best_study` is the
    study file of the best trial, `command` the one that runs it.
    """

    study: str
    metric: str
    trials: tuple[SweepTrial, ...]
    counts: dict[str, int]
    epochs: SweepEpochs
    best: SweepTrial | None
    importance: dict[str, float]
    note: str
    mlflow_run_id: str | None
    best_study: str = ""
    command: str = ""

    @property
    def complete(self) -> list[SweepTrial]:
        """The trials that came to their end."""
        return [trial for trial in self.trials if trial.state == "complete"]

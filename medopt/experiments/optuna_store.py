"""The trials of a sweep in Optuna's store, which stands in the same database as MLflow's where that is one.

Optuna proposes (TPE), compares a trial with the others at the same epoch, and keeps what came of each. A trial whose
process was killed is still marked as running, and is taken up again under its own number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from medopt.core.errors import ConfigError, Pruned, first_line
from medopt.core.records import EpochRecord
from medopt.experiments.search_space import Parameter

FEW = 4  # complete trials before any is given up


def sweep_url(uri: str, runs: Path) -> str:
    """The database of the sweeps: MLflow's, or `sweeps.db` in the runs folder where MLflow is a server."""
    return f"sqlite:///{(runs / 'sweeps.db').resolve()}" if uri.startswith("http") else uri


@dataclass(frozen=True, slots=True)
class Store:
    """Where a sweep is kept, and how it goes: `warmup` epochs are never given up, nothing is where that is None."""

    url: str
    name: str
    warmup: int | None

    def open(self) -> optuna.Study:
        """The sweep, begun where it is not there. MLflow must have opened its own tables in this database before.

        Both libraries note their version in a table `alembic_version`: it must be MLflow's, or that would refuse it.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        options = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {"pool_pre_ping": True}
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if self.warmup is not None:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=FEW, n_warmup_steps=self.warmup + 1)
        with _stored(self.url):
            storage = optuna.storages.RDBStorage(self.url, engine_kwargs=options, skip_compatibility_check=True)
            return optuna.create_study(
                storage=storage, study_name=self.name, pruner=pruner, direction="maximize", load_if_exists=True
            )


@contextmanager
def _stored(url: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        reason = first_line(error)
        where = url.removeprefix("sqlite:///") if url.startswith("sqlite") else "MLflow's database"
        raise ConfigError(
            f"The sweep's store {where} cannot be used: {reason}. Look whether it runs and may be written to; the same "
            "command then goes on where it was."
        ) from error


class Trials:
    """The sweep as the process sees it that proposes and collects."""

    def __init__(self, store: Store, space: Sequence[Parameter], seed: int, trials: int) -> None:
        self._store, self._space, self._seed = store, space, seed
        self._first = min(10, max(FEW, trials // 3))  # drawn at random, before TPE has anything to learn from
        self._study = store.open()

    def begun(self) -> list[FrozenTrial]:
        """All trials that were begun, in the order of their numbers."""
        with _stored(self._store.url):
            return [one for one in self._study.get_trials(deepcopy=False) if one.state != TrialState.WAITING]

    def unfinished(self) -> list[FrozenTrial]:
        """Trials that were cut off."""
        return [one for one in self.begun() if one.state == TrialState.RUNNING]

    def start_with(self, values: Mapping[str, Any]) -> None:
        """Let the first trial be the study as it is, unless the sweep was begun before."""
        with _stored(self._store.url):
            if values and not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(dict(values))

    def ask(self) -> FrozenTrial:
        """The next trial. What is proposed follows from the seed, the trial's number and the finished trials alone."""
        with _stored(self._store.url):
            number = len(self.begun())
            seed = (self._seed * 1_000_003 + number) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._first)
            trial = self._study.ask()
            for one in self._space:
                if one.choices:
                    trial.suggest_categorical(one.path, one.choices)
                elif one.is_whole:
                    trial.suggest_int(one.path, int(one.low), int(one.high), log=one.is_log)
                else:
                    trial.suggest_float(one.path, one.low, one.high, log=one.is_log)
            return self._study.get_trials(deepcopy=False)[trial.number]

    def overrides(self, trial: FrozenTrial) -> list[str]:
        """The trial's values as `--set` takes them."""
        return [
            f"{one.path}={trial.params[one.path] if one.choices else one.written(trial.params[one.path])}"
            for one in self._space
        ]

    def tell(self, number: int, state: str, score: float | None = None, **notes: Any) -> None:
        """What came of a trial: complete with its score, pruned, or fail."""
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}
        with _stored(self._store.url):
            trial = self._study.get_trials(deepcopy=False)[number]
            for key, value in notes.items():
                self._study._storage.set_trial_user_attr(trial._trial_id, key, value)
            self._study.tell(number, score if state == "complete" else None, states[state])

    def importances(self) -> dict[str, float]:
        """How much each parameter decides about the score (PED-ANOVA); empty with few trials."""
        complete = [one for one in self.begun() if one.state == TrialState.COMPLETE]
        if len(complete) < 2 * FEW or len(self._space) < 2:
            return {}
        try:
            with _stored(self._store.url):
                found = get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError):  # all scores are the same
            return {}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}


class Watcher:
    """What a trial's training calls after each epoch: it reports the score, and ends the trial where that is hopeless.

    Epochs that an earlier process of the same trial reported are not reported again.
    """

    def __init__(self, store: Store, trial: int, epochs: int) -> None:
        self._store, self._epochs = store, epochs
        with _stored(store.url):
            study = store.open()
            found = study.get_trials(deepcopy=False)[trial]
            self._trial = Trial(study, found._trial_id)
            self._known = set(found.intermediate_values)

    def __call__(self, history: Sequence[EpochRecord]) -> None:
        """Raises Pruned where other trials were better at this epoch, and the trial is not at its end anyway."""
        new = [one for one in history if one.epoch + 1 not in self._known]
        with _stored(self._store.url):
            for one in new:
                self._known.add(one.epoch + 1)
                if math.isfinite(one.val_metric):
                    self._trial.report(one.val_metric, one.epoch + 1)
            if new and len(history) < self._epochs and self._trial.should_prune():
                raise Pruned(f"given up after epoch {len(history)}: the median of the other trials was better there")

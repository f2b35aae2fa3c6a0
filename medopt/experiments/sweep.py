"""A sweep: many trainings with other settings, each a run that only trains; validation alone compares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, Pruned, TrainingError
from medopt.core.jobs import Fleet, Job, connected, run_jobs
from medopt.core.reporter import Reporter
from medopt.experiments.optuna_store import Store, Trials, Watcher, sweep_url
from medopt.experiments.run_group import RunGroup, open_group
from medopt.experiments.search_space import Sweep, value_of
from medopt.experiments.sweep_report import FinishedSweep, record_sweep
from medopt.pipeline.fill_cache import fill_cache
from medopt.pipeline.run import train_study
from medopt.pipeline.study_cases import read_source


def run_sweep(sweep: Sweep, data: Path, runs: Path, fleet: Fleet, reporter: Reporter) -> FinishedSweep:
    """Run the trials that are missing on an engine, and return the sweep with its trials.

    Trials that were cut off go on from their checkpoints; finished ones are not repeated. A training that fails (a loss
    that is no number) is a failed trial and stops nothing; any other error ends the sweep, to be continued.
    """
    source = read_source(sweep.study, sweep.study_file, data, runs)
    data, runs = data.resolve(), runs.resolve()
    path = sweep.place(source, runs)
    tags = {"study": sweep.study.name, "kind": "sweep", "manifest_digest": source.digest}
    with connected(fleet), open_group(path, sweep.study, runs, tags) as group:
        warmup = max(1, sweep.study.training.epochs // 5) if sweep.is_pruned else None
        store = Store(sweep_url(group.parent.uri, runs), f"{sweep.study.name}/{path.name}", warmup)
        trials = Trials(store, sweep.space, sweep.study.seed, sweep.trials)
        trials.start_with(_own_values(sweep))
        if fleet.engine == "ray":
            fill_cache(source, runs, fleet, reporter)
        _run_trials(sweep, store, trials, group, (data, runs), fleet, reporter)
        finished = record_sweep(sweep, trials, group, data)
        group.end("done")
        return finished


def _own_values(sweep: Sweep) -> dict[str, Any]:
    """The study's own settings as a trial; empty where they lie outside the space."""
    found = {one.path: one.near(value_of(sweep.study, one.path)) for one in sweep.space}
    return {} if None in found.values() else found


def _run_trials(
    sweep: Sweep,
    store: Store,
    trials: Trials,
    group: RunGroup,
    places: tuple[Path, Path],
    fleet: Fleet,
    reporter: Reporter,
) -> None:
    """Ask, train, tell, until the sweep has its trials."""
    numbers: dict[str, int] = {}

    def job(number: int, overrides: Sequence[str]) -> Job:
        study = load_study(sweep.study_file, [*sweep.overrides, *overrides])
        name = f"trial {number}: {', '.join(overrides)}"
        numbers[name] = number
        arguments = (study, sweep.study_file.resolve(), *places, group.parent.run_id, store, number)
        return Job(name, run_trial, arguments)

    def jobs() -> Iterator[Job]:
        for trial in trials.unfinished():
            yield job(trial.number, trials.overrides(trial))
        while len(trials.begun()) < sweep.trials:
            trial = trials.ask()
            try:
                yield job(trial.number, trials.overrides(trial))
            except ConfigError as error:  # settings that exclude each other
                reporter.message(f"trial {trial.number}: {error}")
                trials.tell(trial.number, "fail", reason=str(error))

    missing = sweep.trials - len(trials.begun()) + len(trials.unfinished())
    for outcome in run_jobs(jobs(), fleet, reporter, max(0, missing), "trials", ahead=False):
        number = numbers[outcome.job.name]
        if isinstance(outcome.error, TrainingError):
            trials.tell(number, "fail", reason=str(outcome.error))
        elif outcome.error is not None:
            raise outcome.error
        else:
            trials.tell(number, **outcome.result)
            told = outcome.result.get("reason") or f"score {outcome.result['score']:.4f}"
            reporter.message(f"trial {number}: {told}")


def run_trial(
    reporter: Reporter,
    study: Study,
    study_file: Path,
    data: Path,
    runs: Path,
    parent: str,
    store: Store,
    number: int,
) -> dict[str, Any]:
    """One job: train, report each epoch, and stop where it is hopeless."""
    watcher = Watcher(store, number, study.training.epochs)
    try:
        trained = train_study(study, study_file, data, runs, reporter, parent, watcher)
    except Pruned as error:
        return {"state": "pruned", "score": None, "reason": str(error)}
    if trained.score is None:
        raise TrainingError("no epoch gave a defined score on validation")
    return {"state": "complete", **asdict(trained), "folder": str(trained.folder)}

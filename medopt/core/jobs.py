"""Independent jobs, one after the other in this process or on a Ray cluster: seeds, folds, trials, archives.

Ray decides what runs where. A job whose node died is started again on another one, where it finds its folder and
continues; a job that ends with an error of medopt does not stop the others.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medopt.core import signals
from medopt.core.errors import BusyError, ConfigError, MedoptError, listed
from medopt.core.files import local_disk
from medopt.core.reporter import Reporter, SilentReporter

Engine = Literal["local", "ray"]
TRIES = 5  # how often a job is started again when its node or its process died
PATIENCE = 90.0  # seconds for which a restarted job waits until its predecessor, cut off, has ended
ANSWER = 10.0  # seconds in which a cluster has to answer
CANCEL = 30.0  # seconds in which jobs, after Ctrl-C, have to close their runs


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where jobs run. `cpus` and `gpus` are for one job; None is one GPU where the cluster has any."""

    engine: Engine = "local"
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"--on takes local or ray; got {self.engine!r}.")
        if self.cpus < 1 or (self.gpus or 0) < 0:
            raise ConfigError(f"A job takes one processor at least, and no GPU less than none; got {self.cpus}.")


@dataclass(frozen=True, slots=True)
class Job:
    """A function of a module, called with a reporter and `arguments`; both are sent to another machine."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job returned, or why it did not."""

    job: Job
    result: Any = None
    error: MedoptError | None = None


def run_jobs(
    jobs: Iterable[Job], fleet: Fleet, reporter: Reporter, total: int, what: str, ahead: bool = True
) -> Iterator[Outcome]:
    """Run `total` jobs and yield the outcome of each as soon as it is known; on a cluster, in any order.

    With `ahead`, the cluster gets all jobs at once; else only as many as it has room for, so that `jobs` may depend on
    earlier outcomes. `what` names the jobs in messages. Raises ConfigError where Ray is not installed or its cluster
    does not answer. An interrupt ends all jobs; each of them can continue later.
    """
    if fleet.engine == "local":
        return _here(jobs, reporter, total)
    return _spread(jobs, fleet, reporter, total, what, ahead)


def refuse_failures(outcomes: Sequence[Outcome], what: str) -> None:
    """Raise the failures of all jobs as one error of the first one's kind."""
    failed = [(outcome.job.name, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    texts = listed([f"{name}: {error}" for name, error in failed])
    raise type(failed[0][1])(
        f"{len(failed)} of {len(outcomes)} {what} ended with an error, the others are done. {texts} The same command "
        "continues with those that are missing."
    )


def _here(jobs: Iterable[Job], reporter: Reporter, total: int) -> Iterator[Outcome]:
    for number, job in enumerate(jobs, start=1):
        signals.raise_if_interrupted()
        reporter.stage(f"{number}/{total}", job.name)
        try:
            with local_disk():
                result = job.function(reporter, *job.arguments)
            yield Outcome(job, result)
        except MedoptError as error:
            reporter.message(f"{job.name}: {error}")
            yield Outcome(job, error=error)


def _spread(
    jobs: Iterable[Job], fleet: Fleet, reporter: Reporter, total: int, what: str, ahead: bool
) -> Iterator[Outcome]:
    with _cluster() as ray:
        task = ray.remote(_work).options(num_cpus=fleet.cpus, num_gpus=_gpus(ray, fleet), max_retries=TRIES)
        waiting, done = iter(jobs), 0
        running: dict[Any, Job] = {}
        advance = reporter.progress(total, what)
        try:
            while True:
                room = total if ahead else _room(ray, fleet)
                while len(running) < room and (job := next(waiting, None)) is not None:
                    ticket = task.remote(job.function, job.arguments, fleet.cpus, _surroundings())
                    running[ticket] = job
                if not running:
                    return
                signals.raise_if_interrupted()
                for ticket in ray.wait(list(running), timeout=1.0)[0]:
                    outcome, done = _collected(ray, ticket, running.pop(ticket)), done + 1
                    advance(1)
                    reporter.message(f"{done}/{total} {outcome.job.name}: {outcome.error or 'done'}")
                    yield outcome
        finally:  # after Ctrl-C, or where the consumer stops
            _cancel(ray, list(running))


def _collected(ray: Any, ticket: Any, job: Job) -> Outcome:
    try:
        result = ray.get(ticket)
    except ray.exceptions.RayTaskError as error:  # not an error of medopt: a fault of the program
        if os.environ.get("MEDOPT_DEBUG"):
            raise
        kind = type(error.cause).__name__ if error.cause is not None else "an error"
        return Outcome(job, error=MedoptError(f"ended with {kind}, a fault of the program; medopt --debug shows it."))
    except ray.exceptions.RayError as error:
        text = f"its process died again and again ({type(error).__name__}); was there memory enough for {job.name}?"
        return Outcome(job, error=MedoptError(text))
    return Outcome(job, error=result) if isinstance(result, MedoptError) else Outcome(job, result)


def _cancel(ray: Any, tickets: list[Any]) -> None:
    """Interrupt running jobs, so that each closes its run, and end those that do not react."""
    for ticket in tickets:
        ray.cancel(ticket)
    rest = ray.wait(tickets, num_returns=len(tickets), timeout=CANCEL)[1] if tickets else []
    for ticket in rest:
        ray.cancel(ticket, force=True)


def _room(ray: Any, fleet: Fleet) -> int:
    """How many jobs the cluster can run at once, as it is now."""
    resources, gpus = ray.cluster_resources(), _gpus(ray, fleet)
    room = resources.get("CPU", 1) / fleet.cpus
    return max(1, int(min(room, resources.get("GPU", 0) / gpus) if gpus else room))


def _gpus(ray: Any, fleet: Fleet) -> float:
    return float(min(1, ray.cluster_resources().get("GPU", 0))) if fleet.gpus is None else fleet.gpus


def job_count(fleet: Fleet, pieces: int, min_pieces: int) -> int:
    """The number of jobs for `pieces` equal pieces of work, each job with at least `min_pieces` of them."""
    if fleet.engine == "local":
        return 1
    with _cluster() as ray:
        return max(1, min(pieces // min_pieces, 4 * _room(ray, fleet)))


@contextmanager
def connected(fleet: Fleet) -> Iterator[None]:
    """Keep one connection to the cluster within the block; for the local engine, do nothing."""
    if fleet.engine == "local":
        yield
        return
    with _cluster():
        yield


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS, else to that of this machine, else to a new one for this block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("--on ray needs Ray, which is not installed: pip install 'medopt[ray]'.") from None
    begun = not ray.is_initialized()
    handlers = {number: signal.getsignal(number) for number in signals.ending_signals()}
    try:
        if begun:
            _connect(ray)
        if threading.current_thread() is threading.main_thread():  # Ray installs its own; interrupts are handled here
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray
    finally:
        if begun:
            ray.shutdown()


def _connect(ray: Any) -> None:
    where = os.environ.get("RAY_ADDRESS") or "on this machine"
    try:
        host, _, port = where.rpartition(":")
        if host and port.isdigit() and "/" not in host:  # Ray itself would try for many minutes
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The Ray cluster {where} does not answer ({type(error).__name__}). Look at it with `ray status`, start "
            "one with `ray start --head`, or leave RAY_ADDRESS empty for one that lasts as long as this command."
        ) from error


def _surroundings() -> dict[str, str]:
    """What a job needs on another machine as it is here: the current folder, and the settings of medopt and MLflow.

    They are sent as arguments, because Ray shows an environment on its pages, and it may contain a key.
    """
    kept = {name: value for name, value in os.environ.items() if name.startswith(("MEDOPT_", "MLFLOW_"))}
    return kept | {"PWD": str(Path.cwd())}


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], cpus: int, surroundings: dict[str, str]) -> Any:
    """Run a job in a process of the cluster: its result, or the error of medopt that it ended with."""
    os.environ.update(surroundings)
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    if Path(surroundings["PWD"]).is_dir():
        os.chdir(surroundings["PWD"])
    import torch

    torch.set_num_threads(cpus)
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            with local_disk():
                return function(SilentReporter(), *arguments)
        except BusyError as error:  # the process of a node that was cut off may still be ending
            if time.monotonic() > limit:
                return error
            time.sleep(1)
        except MedoptError as error:
            return error

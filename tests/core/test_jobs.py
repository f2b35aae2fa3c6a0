"""Jobs on the local engine, their failures told together, and what is refused before anything starts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from medopt.core import signals
from medopt.core.errors import BusyError, ConfigError, DataError, MedoptError, TrainingError
from medopt.core.jobs import Fleet, Job, Outcome, _surroundings, _work, connected, job_count, refuse_failures, run_jobs
from medopt.core.reporter import Reporter, SilentReporter


class Told(SilentReporter):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.messages: list[str] = []

    def stage(self, name: str, note: str) -> None:
        self.stages.append((name, note))

    def message(self, text: str) -> None:
        self.messages.append(text)


def double(_reporter: Reporter, number: int) -> int:
    return 2 * number


def refuse_odd(_reporter: Reporter, number: int) -> int:
    if number % 2:
        raise TrainingError(f"{number} is odd")
    return number


def jobs(function: Callable[..., Any], count: int) -> list[Job]:
    return [Job(f"job {number}", function, (number,)) for number in range(count)]


def local(function: Callable[..., Any], count: int, reporter: Reporter | None = None) -> list[Outcome]:
    return list(run_jobs(jobs(function, count), Fleet(), reporter or SilentReporter(), count, "jobs"))


def test_jobs_run_in_order_and_are_told() -> None:
    told = Told()
    assert [outcome.result for outcome in local(double, 3, told)] == [0, 2, 4]
    assert told.stages == [("1/3", "job 0"), ("2/3", "job 1"), ("3/3", "job 2")]


def test_failure_stops_no_other_job_and_all_are_raised_together() -> None:
    told = Told()
    found = local(refuse_odd, 4, told)
    assert [outcome.result for outcome in found] == [0, None, 2, None]
    assert told.messages == ["job 1: 1 is odd", "job 3: 3 is odd"]
    with pytest.raises(TrainingError, match=r"2 of 4 jobs ended with an error.*job 1: 1 is odd; job 3: 3 is odd"):
        refuse_failures(found, "jobs")
    refuse_failures(local(double, 2), "jobs")


def test_fault_of_the_program_is_not_hidden() -> None:
    with pytest.raises(TypeError):
        local(lambda _reporter, number: number + "", 1)


def test_jobs_are_made_from_the_outcomes_before() -> None:
    """A sweep's next trial follows from those that ended."""
    seen: list[int] = []

    def made() -> Any:
        for number in range(3):
            assert len(seen) == number
            yield Job(str(number), double, (number,))

    for outcome in run_jobs(made(), Fleet(), SilentReporter(), 3, "trials", ahead=False):
        seen.append(outcome.result)
    assert seen == [0, 2, 4]


def test_interrupt_comes_between_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    with pytest.raises(KeyboardInterrupt):
        for outcome in run_jobs(jobs(double, 3), Fleet(), SilentReporter(), 3, "jobs"):
            found.append(outcome.result)
            monkeypatch.setattr(signals, "_received", [signal.SIGINT])
    assert found == [0]


@pytest.mark.parametrize("wrong", [{"engine": "slurm"}, {"cpus": 0}, {"gpus": -1.0}])
def test_fleet_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Fleet(**wrong)


def test_local_engine_cuts_nothing_and_connects_to_nothing() -> None:
    with connected(Fleet()):
        assert job_count(Fleet(), 1000, 1) == 1
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as import finds it where it is not installed
    with pytest.raises(ConfigError, match=r"pip install 'medopt\[ray\]'"):
        list(run_jobs(jobs(double, 1), Fleet("ray"), SilentReporter(), 1, "jobs"))


def test_cluster_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1 does not answer"), connected(Fleet("ray")):
        pass


def test_settings_travel_as_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("MEDOPT_PSEUDONYM_KEY", "of this site")
    monkeypatch.setenv("UNRELATED", "stays here")
    monkeypatch.chdir(tmp_path)
    found = _surroundings()
    assert found["MEDOPT_PSEUDONYM_KEY"] == "of this site"
    assert "UNRELATED" not in found
    assert found["PWD"] == str(tmp_path)


def test_job_started_again_waits_for_the_process_that_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    calls = []

    def work(_reporter: Reporter, busy: int) -> str:
        calls.append(1)
        if len(calls) <= busy:
            raise BusyError("another process")
        return "done"

    assert _work(work, (2,), 1, {"PWD": "/nowhere"}) == "done"
    assert len(calls) == 3
    monkeypatch.setattr("medopt.core.jobs.PATIENCE", -1.0)
    calls.clear()
    assert isinstance(_work(work, (9,), 1, {"PWD": "/nowhere"}), BusyError)


def test_error_of_a_job_comes_back_as_itself() -> None:
    def work(_reporter: Reporter) -> None:
        raise DataError("no such image")

    found = _work(work, (), 1, {"PWD": "/nowhere"})
    assert isinstance(found, DataError)
    assert isinstance(found, MedoptError)

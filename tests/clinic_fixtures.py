"""The made-up clinic and one finished run of its study, made once for all tests (and all pytest workers)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic, make_clinic

from medopt.core.signals import ending_signals

MEDOPT = Path(sys.executable).with_name("medopt")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left: its exit code and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found

    def refused(self, code: int, *words: str) -> str:
        """One paragraph on stderr with these words, the exit code, and no traceback."""
        assert self.code == code, (self.code, self.stderr)
        last = self.stderr.rstrip("\n").splitlines()[-1]
        assert "Traceback" not in self.stderr + self.stdout
        for word in words:
            assert word in last, (word, self.stderr)
        return last


def call(*words: object) -> Done:
    """The command line in this process, as `medopt WORDS` would run it."""
    from medopt.cli.main import main

    out, err, code = StringIO(), StringIO(), 0
    argv, handlers = sys.argv, {number: signal.getsignal(number) for number in ending_signals()}
    sys.argv = ["medopt", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


def environment(**more: str) -> dict[str, str]:
    """One thread, so that weights are the same to the bit, and a sample of the system each second."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "MEDOPT_DATA")}
    return kept | {"OMP_NUM_THREADS": "1", "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1", **more}


def start(*words: object, **more: str) -> subprocess.Popen[str]:
    """A process of its own."""
    command = [str(MEDOPT), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more))


def wait(process: subprocess.Popen[str]) -> Done:
    stdout, stderr = process.communicate(timeout=600)
    return Done(process.returncode, stdout, stderr)


def run_words(clinic: Clinic, runs: Path) -> list[object]:
    return ["run", clinic.study_file, "--data", clinic.data, "--runs", runs, "--json"]


def only_folder(runs: Path, study: str) -> Path:
    """The one run folder of a study."""
    (folder,) = (path for path in (runs / study).iterdir() if path.is_dir())
    return folder


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that went the whole way in a process of its own."""

    clinic: Clinic
    runs: Path
    done: Done
    seconds: float

    @property
    def folder(self) -> Path:
        return only_folder(self.runs, "clinic")

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @property
    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return found

    @property
    def store(self) -> str:
        return f"sqlite:///{self.runs / 'mlflow.db'}"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder for all workers of one test session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "clinic"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def clinic(shared_folder: Path) -> Clinic:
    with one_at_a_time(shared_folder / "made.lock"):
        return make_clinic(shared_folder / "made")


@pytest.fixture(scope="session")
def finished(shared_folder: Path, clinic: Clinic) -> Finished:
    """No test may change what is in it; copy the release to tamper with it."""
    runs, report = shared_folder / "runs", shared_folder / "finished.json"
    with one_at_a_time(shared_folder / "finished.lock"):
        if not report.exists():
            begun = time.perf_counter()
            done = wait(start(*run_words(clinic, runs)))
            assert done.code == 0, done.stderr
            report.write_text(json.dumps([done.stdout, done.stderr, time.perf_counter() - begun]))
    stdout, stderr, seconds = json.loads(report.read_text())
    return Finished(clinic, runs, Done(0, stdout, stderr), seconds)

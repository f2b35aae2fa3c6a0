"""The command line itself: what it tells of itself, and wrong usage."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from clinic import STUDY, Clinic, write_study
from clinic_fixtures import MEDOPT, Finished, call, environment, start, wait

import medopt
from medopt.core.errors import DataError, MedoptError, StorageError
from medopt.core.files import local_disk
from medopt.core.jobs import Fleet, Job, run_jobs
from medopt.core.reporter import SilentReporter

COMMANDS = ("run", "phantom", "fetch", "verify", "predict", "serve", "ui")


def test_help_names_every_command_and_exit_code() -> None:
    done = call("--help")
    assert done.code == 0
    text = " ".join(done.stdout.split())
    assert all(f"│ {command} " in done.stdout for command in COMMANDS)
    assert "Exit codes: 0 done, 2 usage or configuration, 3 data refused, 4 training failed, 5 no release," in text
    assert "6 release refused, 130 interrupted" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = call(command, "--help")
    assert done.code == 0
    assert f" {command} [OPTIONS]" in done.stdout


def test_no_command_shows_the_help() -> None:
    done = call()
    assert done.code == 2
    assert "Exit codes: " in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_version() -> None:
    done = call("--version")
    assert (done.code, done.stdout, done.stderr) == (0, f"{medopt.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("runn", "study.yaml"), "No such command 'runn'. Did you mean 'run'? See"),
        (("run",), "Missing argument 'STUDY...'"),
        (("run", "study.yaml", "--drop"), "No such option: --drop"),
        (("predict", "release"), "Missing argument 'PATH...'"),
        (("verify",), "Missing argument 'RELEASE'"),
        (("ui", "--port", "http"), "Invalid value for '--port'"),
        (("phantom", "folder", "--patients", "few"), "Invalid value for '--patients'"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str) -> None:
    assert call(*words).refused(2, said, "See medopt --help.").startswith("UsageError: ")


def test_study_file_that_is_not_there(tmp_path: Path) -> None:
    call("run", tmp_path / "none.yaml").refused(2, "ConfigError", "There is no study file", "none.yaml")


def test_dry_run_writes_nothing(clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in clinic.data.rglob("*")}
    done = call("run", clinic.study_file, "--data", clinic.data, "--dry-run", "--fresh")
    assert done.code == 0
    assert "# the plan" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in clinic.data.rglob("*")} == before


@pytest.mark.parametrize("command", [("verify",), ("predict", "scan.dcm")])
def test_folder_that_is_no_release(tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *rest = command
    call(name, tmp_path, *rest).refused(6, "ReleaseError", "is not a release")


def test_predict_with_wrong_options(finished: Finished, tmp_path: Path) -> None:
    scan, out = finished.clinic.data / "scans" / "000.dcm", tmp_path / "answers.csv"
    words = ["predict", finished.release, scan, "--out", out]
    call(*words, "--model", "int4").refused(2, "Invalid value for '--model'", "int4", "int8")
    call(*words, "--engine", "tensorflow").refused(6, "tensorflow did not pass the gate for the int8 model; passed: ")
    assert not list(tmp_path.iterdir())


def test_predict_where_no_scan_is(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    done = call("predict", finished.release, tmp_path / "nowhere.dcm", "--out", out)
    done.refused(3, "DataError", "nowhere.dcm")


def test_verify_names_every_golden_case(finished: Finished) -> None:
    done = call("verify", finished.release, "--json")
    assert done.code == 0
    assert {row["case"] for row in done.summary["golden"]} == {f"golden/case-{index}.dcm" for index in (1, 2, 3)}


def test_fetch_without_a_card(clinic: Clinic, tmp_path: Path) -> None:
    study_file = write_study(tmp_path, STUDY)
    done = call("fetch", study_file, "--data", tmp_path)
    done.refused(2, "ConfigError", "The study clinic has no card that names an address")
    assert list(tmp_path.iterdir()) == [study_file]


def test_fetch_takes_the_name_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("fetch", "breastmnst").refused(2, "There is no study file breastmnst", "Did you mean breastmnist?")


def test_ui_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    call("ui", "--runs", tmp_path).refused(2, "There is no MLflow store in", "--runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    call("ui", "--runs", tmp_path).refused(2, "The store is a server: open http://127.0.0.1:9/")


def test_phantom_draws_a_study(tmp_path: Path) -> None:
    done = call("phantom", tmp_path / "drawn", "--patients", "24", "--seed", "1")
    assert done.code == 0, done.stderr
    assert (tmp_path / "drawn" / "manifest.csv").is_file()
    assert list((tmp_path / "drawn" / "images").rglob("*.dcm"))


def test_phantom_of_too_few_patients_draws_none(tmp_path: Path) -> None:
    call("phantom", tmp_path / "drawn", "--patients", "12").refused(2, "ConfigError", "ask for 24 or more")
    assert not list(tmp_path.iterdir())


def test_error_stays_one_line_without_a_terminal(tmp_path: Path) -> None:
    """As a scheduler's log sees it."""
    done = wait(start("run", tmp_path / "none.yaml"))
    assert done.refused(2, "ConfigError: There is no study file") == done.stderr.rstrip("\n")


def test_debug_shows_where_an_error_comes_from(clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDOPT_DEBUG", "")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("image,label\n")
    study_file = write_study(tmp_path, STUDY)
    with pytest.raises(DataError, match="has no column"):
        call("--debug", "run", study_file, "--data", clinic.data)


def test_a_full_disk_that_no_command_expects_is_one_paragraph() -> None:
    """/dev/full takes nothing, as a full disk does; here it is where the result is printed."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MEDOPT, "config", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 2 and done.stderr.startswith("StorageError: The disk is full: writing a file failed.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full: writing /scratch/a.npy failed"),
        (errno.EDQUOT, "The disk is full for this user (quota): writing /scratch/a.npy failed"),
        (errno.EACCES, "/scratch/a.npy may not be read or written (Permission denied)"),
        (errno.EROFS, "/scratch/a.npy may not be written to (Read-only file system)"),
        (errno.EIO, "[Errno 5] Input/output error"),
    ],
)
def test_what_the_disk_refuses_anywhere_is_said_in_words(number: int, said: str) -> None:
    with pytest.raises(OSError if number == errno.EIO else StorageError, match=re.escape(said)), local_disk():
        raise OSError(number, os.strerror(number), "/scratch/a.npy")


def test_a_port_that_may_not_be_used_is_no_matter_of_the_disk() -> None:
    with pytest.raises(PermissionError), local_disk():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_job_that_the_disk_stops_leaves_the_others() -> None:
    def write(reporter: object, place: Path) -> int:
        with place.open("w") as stream:
            return stream.write("x")

    jobs = [Job(name, write, (Path(name),)) for name in ("/dev/full", "/dev/null")]
    full, other = run_jobs(jobs, Fleet("local", 1, None), SilentReporter(), 2, "writes")
    assert isinstance(full.error, MedoptError) and "The disk is full" in str(full.error) and other.result == 1


def test_an_interrupt_that_leaves_as_another_error_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Ctrl-C comes within a lock's own code, which then cannot release what it has not acquired."""

    def interrupted(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("cannot release un-acquired lock") from None

    monkeypatch.setattr("medopt.cli.main.app", interrupted)
    call("run").refused(130, "Interrupted", "same command")

"""Runs that were begun and refused: what is kept, what the same command then does, and what --fresh does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from clinic import STUDY, Clinic, write_study
from clinic_fixtures import MEDOPT, Done, call, environment, only_folder

from medopt.config import Study
from medopt.pipeline.run_folder import open_run
from medopt.pipeline.stages.compress import CompressStage


@dataclass(frozen=True, slots=True)
class Bench:
    """The clinic's data, to be changed, and a study of one epoch."""

    data: Path
    study_file: Path

    def run(self, runs: Path, *words: object) -> Done:
        return call("run", self.study_file, "--data", self.data, "--runs", runs, *words)


@pytest.fixture
def bench(clinic: Clinic, tmp_path: Path) -> Bench:
    (tmp_path / "scans").mkdir()
    for path in (clinic.data / "scans").iterdir():
        (tmp_path / "scans" / path.name).symlink_to(path)
    shutil.copy(clinic.data / "manifest.csv", tmp_path)
    return Bench(tmp_path, write_study(tmp_path, STUDY | {"training": STUDY["training"] | {"epochs": 3}}))


@pytest.fixture
def only_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ctrl-C came when training has ended: what follows takes longer and is not asked about here."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CompressStage, "run", interrupt)


def test_same_command_takes_up_a_failed_run_and_fresh_begins_another(bench: Bench, tmp_path: Path) -> None:
    runs, wild = tmp_path / "runs", ["--set", "training.optimizer.lr=1e30", "--set", "training.clip_norm=0"]
    folders: list[list[Path]] = []
    for more in ([], [], ["--fresh"]):
        bench.run(runs, *wild, *more).refused(4, "not a finite number", "training.optimizer.lr=1e+29")
        folders.append(sorted((runs / "clinic").iterdir()))
    assert folders[0] == folders[1]
    assert len(folders[2]) == 2
    facts = [json.loads((folder / "run.json").read_text()) for folder in folders[2]]
    assert [fact["outcome"] for fact in facts] == ["TrainingError", "TrainingError"]
    assert facts[0]["mlflow_run_id"] != facts[1]["mlflow_run_id"]


@pytest.mark.usefixtures("only_trained")
def test_images_changed_under_a_begun_run_are_not_mixed(bench: Bench, tmp_path: Path) -> None:
    """Weights of other pixels are not trained on, and the way out is named."""
    assert bench.run(tmp_path / "runs", "--set", "training.epochs=1").code == 130
    scan = bench.data / "scans" / "007.dcm"
    scan.unlink()
    shutil.copyfile(bench.data / "scans" / "009.dcm", scan)
    bench.run(tmp_path / "runs", "--set", "training.epochs=1").refused(4, "its images were changed", "--fresh")


@pytest.mark.usefixtures("only_trained")
def test_run_goes_on_when_the_disk_has_room_again(bench: Bench, tiny_disk: Callable[[int], Path]) -> None:
    """Full after an epoch; the checkpoint that was not whole is not there, and none before it is lost."""
    place = tiny_disk(6000)
    bench.run(place / "runs").refused(2, "The disk is full", "safetensors", "continues where it was")
    checkpoints = only_folder(place / "runs", "clinic") / "checkpoints"
    whole = sorted(path.name for path in checkpoints.glob("epoch-*"))
    assert 0 < len(whole) < 3
    assert not list(place.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=40m", str(place)], check=True)
    done = bench.run(place / "runs")
    assert done.code == 130
    assert done.stderr.count("  epoch ") == 3 - len(whole)


def test_folder_that_may_not_be_written_to(bench: Bench) -> None:
    """Permissions do not bind root, who gives up that privilege here."""
    place, become = bench.data / "closed", []
    place.mkdir(mode=0o555)
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root is not bound by permissions, and there is no setpriv to give that up")
        become = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    words = [*become, str(MEDOPT), "run", str(bench.study_file), "--data", str(bench.data), "--runs", str(place / "r")]
    found = subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment(), check=False)
    Done(found.returncode, found.stdout, found.stderr).refused(2, "may not be written to", "Permission denied")
    assert not list(place.iterdir())


def test_file_in_the_path_of_the_runs_folder(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    bench.run(tmp_path / "file" / "below").refused(2, "there is a file where a folder is needed", "Move it away")


@pytest.fixture
def tiny(tiny_study: Callable[..., Study]) -> Study:
    return tiny_study()


def test_new_folder_in_which_nothing_was_begun_is_taken_away(tiny: Study, tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_run(tmp_path, tiny, "digest") as folder:
        (folder.path / "study.yaml").write_text("name: tiny")
        raise KeyError("before the first stage")
    assert list((tmp_path / "tiny").iterdir()) == []
    with pytest.raises(KeyError), open_run(tmp_path, tiny, "digest") as folder:
        folder.write_facts(mlflow_run_id="1")
        raise KeyError("in a stage")
    assert folder.path.is_dir()


def test_fresh_runs_of_one_second_have_folders_of_their_own(tiny: Study, tmp_path: Path) -> None:
    paths = []
    for _ in range(3):
        with open_run(tmp_path, tiny, "digest", fresh=True) as folder:
            folder.write_facts(mlflow_run_id="1")
            assert folder.is_new
        paths.append(folder.path)
    assert len(set(paths)) == 3
    with open_run(tmp_path, tiny, "digest") as folder:
        assert (folder.path, folder.is_new) == (max(paths), False)
    with open_run(tmp_path, tiny, "another manifest") as folder:
        assert folder.is_new

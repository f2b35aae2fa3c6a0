"""Whatever is wrong with a study, its data, the disk or a release: one paragraph, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clinic import STUDY, Clinic, write_rows, write_study
from clinic_fixtures import Done, Finished, call, start, wait
from mlflow import MlflowClient


class Bench:
    """A study of the clinic in a folder of its own, to be spoilt: its file, its manifest, its scans."""

    def __init__(self, clinic: Clinic, folder: Path) -> None:
        self.clinic, self.folder, self.runs = clinic, folder, folder / "runs"
        self.rows, self.study = clinic.rows(), dict(STUDY)
        self.data = folder / "data"
        (self.data / "scans").mkdir(parents=True)
        for path in (clinic.data / "scans").iterdir():
            (self.data / "scans" / path.name).symlink_to(path)

    def run(self, *words: object, runner: Callable[..., Done] = call) -> Done:
        study_file = write_study(self.folder, self.study)
        write_rows(self.data / "manifest.csv", self.rows)
        return runner("run", study_file, "--data", self.data, "--runs", self.runs, *words)

    def refused(self, code: int, kind: str, *said: str, options: tuple[object, ...] = ()) -> None:
        """A run is refused in one paragraph that gives no patient away, and leaves nothing half-written."""
        done = self.run(*options)
        last = done.refused(code, *said)
        assert last.startswith(f"{kind}: "), last
        assert last.endswith((".", "?")), last
        assert not [secret for secret in self.clinic.identifiers if secret in done.stderr + done.stdout]
        assert not list(self.folder.rglob("*.part"))
        assert not list(self.runs.rglob("release"))


@pytest.fixture
def bench(clinic: Clinic, tmp_path: Path) -> Bench:
    return Bench(clinic, tmp_path)


def test_unspoilt_study_is_taken(bench: Bench) -> None:
    """Else each refusal below could have another reason."""
    assert bench.run("--dry-run").code == 0
    assert not bench.runs.exists()


def test_unknown_key(bench: Bench) -> None:
    bench.study = {**STUDY, "training": {"epochs": 4, "batchsize": 8}}
    bench.refused(2, "ConfigError", "clinic.yaml", "unknown key training.batchsize: did you mean batch_size?")
    assert not bench.runs.exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoch=3", "unknown key training.epoch: did you mean epochs?"),
        ("trainin.epochs=3", "unknown key trainin: did you mean training?"),
        ("training.epochs", "--set takes key=value, as in --set training.epochs=3; got 'training.epochs'"),
        ("name.first=x", "--set name.first=x: name is a value, not a section"),
        ("training.epochs=many", "training.epochs"),
        ("training.epochs=[1", "--set training.epochs=[1: the value is not valid YAML"),
    ],
)
def test_wrong_override(bench: Bench, override: str, said: str) -> None:
    bench.refused(2, "ConfigError", said, options=("--set", override))
    assert not bench.runs.exists()


@pytest.mark.parametrize("column", ["patient_id", "label", "split", "image"])
def test_missing_manifest_column(bench: Bench, column: str) -> None:
    bench.rows = [{key: value for key, value in row.items() if key != column} for row in bench.rows]
    bench.refused(3, "DataError", f"manifest.csv has no column {column}. Found: ", "Needed: image, patient_id")
    assert not bench.runs.exists()


def test_missing_image_files(bench: Bench) -> None:
    for name in ("007.dcm", "031.dcm"):
        (bench.data / "scans" / name).unlink()
    bench.refused(
        3, "DataError", "file_missing: 2 of 72 images", "007.dcm (not there)", "031.dcm (not there)", "--data DIR"
    )
    assert not bench.runs.exists()


def test_empty_image_file(bench: Bench) -> None:
    (bench.data / "scans" / "012.dcm").unlink()
    (bench.data / "scans" / "012.dcm").touch()
    bench.refused(3, "DataError", "1 of 72 images", "012.dcm (empty file)")


@pytest.mark.parametrize("how", ["garbage", "cut"])
def test_unreadable_dicom(bench: Bench, how: str) -> None:
    path = bench.data / "scans" / "012.dcm"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(range(256)) * 40 if how == "garbage" else whole[:-500])
    bench.refused(3, "DataError", "012.dcm")


def test_patient_in_two_splits(bench: Bench) -> None:
    bench.rows[0]["split"] = "test"
    assert bench.rows[0]["patient_id"] == bench.rows[1]["patient_id"]
    bench.refused(
        3,
        "DataError",
        "patient_overlap: 1 of 36 patients",
        "(a pseudonym) in test (000.dcm), train (001.dcm)",
        "Put all images of a patient into one split.",
    )
    assert not bench.runs.exists()


def test_class_absent_from_a_split(bench: Bench) -> None:
    bench.rows = [row for row in bench.rows if (row["split"], row["label"]) != ("val", "blob")]
    bench.refused(3, "DataError", "class_absent: The split val (9 cases) has no case of blob")
    assert not bench.runs.exists()


def test_loss_that_is_not_a_number(bench: Bench) -> None:
    options = ("--set", "training.optimizer={name: sgd, lr: 1.0e+30}", "--set", "training.epochs=1")
    bench.refused(
        4, "TrainingError", "is not a finite number in epoch 1, step", "training.optimizer.lr=1e+29", options=options
    )
    assert not list(bench.runs.rglob("best.safetensors"))
    (run,) = MlflowClient(f"sqlite:///{bench.runs / 'mlflow.db'}").search_runs(["1"])
    assert (run.info.status, run.data.tags["outcome"]) == ("FAILED", "TrainingError")


@pytest.mark.parametrize("kilobytes", [64, 1400])
def test_full_disk(bench: Bench, tiny_disk: Callable[[int], Path], kilobytes: int) -> None:
    """At the first file and in the middle; in a process of its own, whose end closes MLflow's store."""
    bench.runs = tiny_disk(kilobytes) / "runs"
    done = bench.run(runner=lambda *words: wait(start(*words)))
    last = done.refused(2)
    assert last.startswith("StorageError: ")
    assert "The disk is full" in last or "database or disk is full" in last or "disk I/O error" in last
    assert not list(bench.runs.rglob("*.part"))
    assert not list(bench.runs.rglob("release"))
    assert not [secret for secret in bench.clinic.identifiers if secret in done.stderr]


def test_full_disk_of_predictions(finished: Finished, tiny_disk: Callable[[int], Path]) -> None:
    place = tiny_disk(64)
    with pytest.raises(OSError, match="No space left") as raised, (place / "ballast").open("wb") as stream:
        while True:
            stream.write(b"x" * 4096)
            stream.flush()
    assert raised.value.errno == errno.ENOSPC
    out = place / "answers.csv"
    done = call("predict", finished.release, finished.clinic.data / "scans" / "000.dcm", "--out", out)
    done.refused(2, "StorageError", "The disk is full", "answers.csv")
    assert {path.name for path in place.iterdir()} == {"ballast"}


def test_file_where_the_runs_folder_should_be(bench: Bench) -> None:
    bench.runs.write_text("a note")
    bench.refused(2, "StorageError", "there is a file where a folder is needed", "Move it away")
    assert bench.runs.read_text() == "a note"


def test_read_only_place(bench: Bench, tiny_disk: Callable[[int], Path]) -> None:
    place = tiny_disk(64)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    bench.runs = place / "runs"
    bench.refused(2, "StorageError", "may not be written to", "choose another folder")
    assert not list(place.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission(bench: Bench) -> None:
    locked = bench.folder / "locked"
    locked.mkdir(mode=0o555)
    bench.runs = locked / "runs"
    bench.refused(2, "StorageError", "may not be written to", "Change its permissions")


def flip_a_byte(release: Path) -> str:
    path = release / "model.int8.onnx"
    found = bytearray(path.read_bytes())
    found[len(found) // 2] ^= 1
    path.write_bytes(found)
    return "model.int8.onnx was changed"


def move_the_threshold(release: Path) -> str:
    path = release / "release.json"
    path.write_text(path.read_text().replace('"threshold": ', '"threshold": 1', 1))
    return "release.json was changed"


def take_a_file(release: Path) -> str:
    (release / "CARD.md").unlink()
    return "CARD.md is missing"


def add_a_file(release: Path) -> str:
    (release / "notes.txt").write_text("looks fine")
    return "notes.txt does not belong to it"


def spoil_the_list(release: Path) -> str:
    (release / "SHA256SUMS").write_bytes(b"\xff\x00")
    return "is not a list of checksums"


def take_the_list(release: Path) -> str:
    (release / "SHA256SUMS").unlink()
    return "SHA256SUMS: No such file or directory"


TAMPERINGS: list[Any] = [flip_a_byte, move_the_threshold, take_a_file, add_a_file, spoil_the_list, take_the_list]


@pytest.mark.parametrize("tamper", TAMPERINGS)
def test_tampered_release(finished: Finished, tmp_path: Path, tamper: Callable[[Path], str]) -> None:
    release = tmp_path / "release"
    shutil.copytree(finished.release, release)
    said, out = tamper(release), tmp_path / "answers.csv"
    scan = finished.clinic.data / "scans" / "000.dcm"
    for words in (("verify", release), ("predict", release, scan, "--out", out)):
        done = call(*words)
        assert done.refused(6, said).startswith("ReleaseError: ")
        assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_refused_scan_leaves_the_others_their_answers(finished: Finished, tmp_path: Path) -> None:
    shutil.copy(finished.clinic.data / "scans" / "001.dcm", tmp_path / "good.dcm")
    (tmp_path / "spoilt.dcm").write_bytes(b"\x00" * 3000)
    out = tmp_path / "answers.csv"
    done = call("predict", finished.release, tmp_path / "good.dcm", tmp_path / "spoilt.dcm", "--out", out)
    done.refused(3, "DataError", "1 of 2 scans were refused", "spoilt.dcm")
    header, good, spoilt = out.read_text().splitlines()
    assert header.startswith("path,decision,probability_clear,probability_blob,declined,refused,")
    assert good.split(",")[1] in ("clear", "blob") or "unlike the training images" in good
    assert ",,,," in spoilt
    assert not [secret for secret in finished.clinic.identifiers if secret in done.stderr + out.read_text()]

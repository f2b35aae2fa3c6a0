"""No name, number or UID of a patient leaves the headers and the manifest: not into a file, the store or a message."""

from __future__ import annotations

import os
import shutil
import sqlite3
import zlib
from pathlib import Path

import pytest
from clinic_fixtures import Finished, call


def spellings(identifiers: frozenset[str]) -> list[bytes]:
    """As text and as 16-bit text, in both orders."""
    return [word.encode(code) for word in identifiers for code in ("utf-8", "utf-16-le", "utf-16-be")]


def leaks(content: bytes, words: list[bytes]) -> list[bytes]:
    return [word for word in words if word in content]


def images_inside(content: bytes) -> bytes:
    """What the text chunks of a PNG say, uncompressed."""
    found, at = b"", 8
    while content.startswith(b"\x89PNG") and at < len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + size]
        if kind == b"zTXt":
            found += zlib.decompress(body[body.index(b"\0") + 2 :])
        at += size + 12
    return found


def test_identifiers_are_planted(finished: Finished) -> None:
    """Else nothing below could fail."""
    words = spellings(finished.clinic.identifiers)
    assert len(finished.clinic.identifiers) == 4 * 36
    assert leaks((finished.clinic.data / "manifest.csv").read_bytes(), words)
    assert leaks((finished.clinic.data / "scans" / "000.dcm").read_bytes(), words)


def test_no_file_below_runs_holds_one(finished: Finished) -> None:
    words, seen = spellings(finished.clinic.identifiers), set()
    for path in finished.runs.rglob("*"):
        assert not leaks(os.fsencode(path.relative_to(finished.runs)), words)
        if path.is_file():
            content = path.read_bytes()
            found = leaks(content + images_inside(content), words)
            assert not found, (path.relative_to(finished.runs), len(found))
            seen.add(path.suffix)
    assert {".db", ".csv", ".json", ".yaml", ".onnx", ".png", ".npy", ".safetensors", ".md", ".dcm"} <= seen


def test_no_row_of_the_store_holds_one(finished: Finished) -> None:
    """A value may lie across two pages of the file, where a search of its bytes would not find it."""
    store = sqlite3.connect(f"file:{finished.runs / 'mlflow.db'}?mode=ro", uri=True)
    text = "\n".join(store.iterdump()).encode()
    store.close()
    assert finished.metrics["mlflow_run_id"].encode() in text
    assert not leaks(text, spellings(finished.clinic.identifiers))


def test_nothing_that_was_said_holds_one(finished: Finished, tmp_path: Path) -> None:
    words = spellings(finished.clinic.identifiers)
    predicted = call("predict", finished.release, finished.clinic.data / "scans", "--out", tmp_path / "out.csv")
    assert predicted.code == 0
    for done in (finished.done, predicted, call("verify", finished.release)):
        assert done.stdout
        assert not leaks((done.stdout + done.stderr).encode(), words)
    assert not leaks((tmp_path / "out.csv").read_bytes(), words)


@pytest.mark.parametrize("fault", ["overlap", "label", "scan", "patient twice"])
def test_no_refusal_holds_one(finished: Finished, tmp_path: Path, fault: str) -> None:
    clinic = finished.clinic
    shutil.copytree(clinic.data, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.csv"
    text, row = manifest.read_text(), clinic.rows()[0]
    changes = {
        "overlap": text.replace(f"000.dcm,{row['patient_id']}", f"000.dcm,{clinic.rows()[-1]['patient_id']}"),
        "label": text.replace("clear,train", f"{row['patient_id']},train", 1),
        "patient twice": text.replace("001.dcm", "000.dcm"),
        "scan": text,
    }
    manifest.write_text(changes[fault])
    if fault == "scan":
        scan = tmp_path / "data" / "scans" / "000.dcm"
        scan.write_bytes(scan.read_bytes()[:1500])
    done = call("run", clinic.study_file, "--data", tmp_path / "data", "--runs", tmp_path / "runs")
    done.refused(3, "DataError")
    assert not leaks((done.stdout + done.stderr).encode(), spellings(clinic.identifiers))
    for path in tmp_path.joinpath("runs").rglob("*"):
        assert not (path.is_file() and leaks(path.read_bytes(), spellings(clinic.identifiers)))

"""Hashes, pseudonyms, versions, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from medopt import __version__
from medopt.core import provenance
from medopt.core.errors import StorageError
from medopt.core.files import atomic, file_digest, storage, write_json, write_text
from medopt.core.privacy import pseudonym
from medopt.core.provenance import (
    CodeVersion,
    code_version,
    digest,
    machine,
    package_versions,
    processor_quota,
    usable_cores,
)


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_file_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    assert file_digest(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


def test_pseudonym_is_stable_keyed_and_hides_the_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDOPT_PSEUDONYM_KEY", raising=False)
    first = pseudonym("MRN4711")
    assert len(first) == 16
    assert int(first, 16)
    assert first == pseudonym("MRN4711") != pseudonym("MRN4712")
    assert first != hashlib.sha256(b"MRN4711").hexdigest()[:16]
    monkeypatch.setenv("MEDOPT_PSEUDONYM_KEY", "of this site")
    assert pseudonym("MRN4711") != first


def test_package_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    assert package_versions()["numpy"] == numpy.__version__
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "surely-not-installed"))
    assert list(package_versions()) == ["numpy"]


def test_code_version_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "medopt" / "core" / "provenance.py"))
    assert code_version() == CodeVersion(__version__)
    (tmp_path / ".git").mkdir()  # a checkout that git refuses
    assert code_version() == CodeVersion(__version__)


def test_machine_names_processor_and_cores() -> None:
    found = machine()
    assert found.cpu
    assert found.cores is not None and found.cores >= 1
    assert found.python.count(".") == 2


def test_text_and_json_are_written_with_their_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "Übersicht\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "Übersicht\n"
    write_json(tmp_path / "d.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "d.json").read_text()) == {"x": [1, 2.5, None]}


def test_json_refuses_what_is_not_a_number_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "d.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "d.json", {"x": float("nan")})
    assert json.loads((tmp_path / "d.json").read_text()) == {"x": 1}


def test_interrupted_write_keeps_the_old_file_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as part:
        part.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_threads_write_the_same_file_without_mixing(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt", ["x" * 50_000, "y" * 50_000]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_keeps_the_old_file(tiny_disk: Callable[[int], Path]) -> None:
    path = tiny_disk(64) / "a.bin"
    write_text(path, "old")
    with pytest.raises(StorageError, match=r"The disk is full: writing .*a\.bin failed"):
        write_text(path, "n" * 200_000)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(StorageError, match="a folder where a file is"):
        write_text(tmp_path / "a.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(StorageError, match="there is a file where a folder is needed"):
        write_text(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EACCES, "may not be written to"),
        (errno.EPERM, "may not be written to"),
        (errno.EROFS, "may not be written to"),
        (errno.ENOTDIR, "there is a file where a folder is needed"),
    ],
)
def test_refusals_of_the_system_become_storage_errors(number: int, said: str) -> None:
    with pytest.raises(StorageError, match=said) as refused, storage(Path("place")):
        raise OSError(number, "as the system says", "file")
    assert refused.value.exit_code == 2
    assert "place" in str(refused.value)


def test_another_fault_of_the_system_stays_what_it_is() -> None:
    with pytest.raises(OSError, match="broken wire"), storage(Path("place")):
        raise OSError(errno.EIO, "broken wire")


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "cpu.max": "400000 100000"}, 1.5),
        ("0::/seen/by/the/host/only", {"cpu.max": "200000 100000"}, 2.0),
        (
            "4:cpu,cpuacct:/d",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "25000", "cpu,cpuacct/d/cpu.cfs_period_us": "50000"},
            0.5,
        ),
        ("4:cpu,cpuacct:/d", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu:/d", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("9:memory:/d", {}, None),
    ],
)
def test_a_containers_quota_of_processors(tmp_path: Path, own: str, files: dict[str, str], quota: float | None) -> None:
    (tmp_path / "cgroup").write_text(f"{own}\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    places = (tmp_path / "groups", tmp_path)
    assert processor_quota(*places) == quota
    allowed = len(os.sched_getaffinity(0))
    assert usable_cores(*places) == (allowed if quota is None else min(allowed, math.ceil(quota)))


def test_without_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert processor_quota(tmp_path, tmp_path) is None
    assert usable_cores(tmp_path, tmp_path) == len(os.sched_getaffinity(0))

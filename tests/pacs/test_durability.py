"""What was acknowledged is there after a power cut at any moment, and what fails leaves nothing and may come again."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from power_cut import Disk

from medopt.core.errors import BusyError
from medopt.core.files import write_text
from medopt.pacs.intake import OUT_OF_RESOURCES, PROCESSING_FAILURE, Intake, Refusal
from medopt.pacs.ledger import Instance, Ledger
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER, PART, RESULTS, STUDIES, WORK, Spool, spool_file

CONTENTS = {1: b"few pixels", 2: b"pixels" * 5000, 3: b"others" * 5000}  # less than a stream's buffer holds, and more


class Site:
    """A spool on a disk that forgets, its ledger and its intake."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.disk = Disk(folder, monkeypatch, self.check)
        self.acknowledged: dict[str, bytes] = {}
        self.ledger: Ledger | None = None
        self.spool = Spool(folder / "spool")
        self.ledger = Ledger(folder / "spool" / LEDGER)
        values: dict[str, Any] = {
            **{"aet": "MEDOPT", "release": folder, "spool": folder / "spool", "limits": {"free_mb": 0}},
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": 104}],
        }
        self.intake = Intake(NodeSettings.model_validate(values), self.spool, self.ledger, lambda study, is_open: None)

    def check(self, step: str = "") -> None:
        """What the ledger and the senders know is whole on the disk; no name is there whose bytes may be gone."""
        if self.ledger is not None:
            for row in self.ledger.rows("SELECT file, digest FROM instances"):
                found = self.disk.bytes_of(self.spool.root / row["file"])
                assert found is not None and hashlib.sha256(found).hexdigest() == row["digest"], step
        for name, content in self.acknowledged.items():
            assert self.disk.bytes_of(self.spool.root / name) == content, step
        for path, found in self.disk.early("*.dcm").items():
            assert found in CONTENTS.values(), (step, path)

    def store(self, number: int, how: str = "write") -> str:
        """As a sender: returns the path below the spool once the instance was acknowledged."""
        content, uid = CONTENTS[number], f"1.2.3.{number}"
        name = spool_file(STUDIES, "1.2.3", uid)
        digest = hashlib.sha256(content).hexdigest()
        instance = Instance(uid, "1.2.3", "1.2.840.10008.5.1.4.1.1.2", "1.2", digest, len(content), name, True)

        def moved(name: str) -> None:
            part = self.spool.root / WORK / f"{number}{PART}"
            with part.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            self.spool.move_in(part, name)

        write = moved if how == "move_in" else lambda name: self.spool.write(name, [content[:5], content[5:]])
        self.intake.store(instance, write, lambda: True)
        self.acknowledged[name] = content
        self.check("acknowledged")
        return name


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "disk").mkdir()
    return Site(tmp_path / "disk", monkeypatch)


@pytest.mark.parametrize("how", ["write", "move_in"])
def test_what_was_acknowledged_survives_a_power_cut_at_every_step(site: Site, how: str) -> None:
    site.disk.calls.clear()
    for number in CONTENTS:
        site.store(number, how)
    assert site.disk.calls == ["fsync file", "rename", "fsync folder"] * 3
    site.store(1, how)  # a resend is acknowledged from the ledger, and changes nothing
    assert len(site.disk.calls) == 9
    assert {row["file"] for row in site.ledger.rows("SELECT file FROM instances")} == set(site.acknowledged)


@pytest.mark.parametrize("how", ["write", "move_in"])
@pytest.mark.parametrize("fail", [1, 2, 3])
def test_a_step_that_fails_is_refused_leaves_nothing_and_may_come_again(site: Site, how: str, fail: int) -> None:
    site.disk.calls.clear()
    site.disk.fail = fail
    with pytest.raises(Refusal) as refused:
        site.store(1, how)
    assert refused.value == Refusal(OUT_OF_RESOURCES, "the spool cannot be written to (No space left on device)")
    assert site.ledger.rows("SELECT * FROM instances") == []
    assert [path for path in (site.spool.root / STUDIES).rglob("*") if path.is_file()] == []
    site.disk.fail = 0
    name = site.store(1, how)
    assert (site.spool.root / name).read_bytes() == CONTENTS[1]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (sqlite3.OperationalError("database or disk is full"), OUT_OF_RESOURCES),
        (sqlite3.DatabaseError("database disk image is malformed"), PROCESSING_FAILURE),
    ],
)
def test_an_instance_that_the_ledger_does_not_take_leaves_no_file(
    site: Site, error: sqlite3.Error, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(site.ledger, "record", record)
        with pytest.raises(Refusal) as refused:
            site.store(1)
    assert refused.value == Refusal(status, "the ledger cannot be written to")
    assert [path for path in (site.spool.root / STUDIES).rglob("*") if path.is_file()] == []
    name = site.store(1)  # not taken for one that is here
    assert (site.spool.root / name).read_bytes() == CONTENTS[1]


def test_a_spool_has_one_node(tmp_path: Path) -> None:
    first, second = Spool(tmp_path / "spool"), Spool(tmp_path / "spool")
    with first.locked():
        for spool in (first, second):
            with pytest.raises(BusyError, match="Another node works in the spool"), spool.locked():
                raise AssertionError
    with second.locked():  # given back
        pass


def test_a_spool_is_the_owners_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a" / "spool")
    Spool(spool.root)  # again
    folders = [spool.root, *(path for path in spool.root.rglob("*") if path.is_dir())]
    with spool.working_folder([]) as work:
        folders.append(work)
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert sorted(path.name for path in spool.root.iterdir()) == [RESULTS, STUDIES, WORK]
    for name in (STUDIES, RESULTS):
        assert sorted(path.name for path in (spool.root / name).iterdir()) == [f"{n:02x}" for n in range(256)]
    disk = os.statvfs(spool.root)
    assert spool.free_bytes() == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.1)


def test_an_unfinished_write_leaves_what_was_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    name = spool_file(RESULTS, "1.2", "1.2.3")
    assert name == f"results/{hashlib.sha256(b'1.2').hexdigest()[:2]}/{hashlib.sha256(b'1.2.3').hexdigest()[:32]}.dcm"
    spool.write(name, [b"first"])

    def breaks_off() -> Iterable[bytes]:
        yield b"second"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool.write(name, breaks_off())
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [b"first"]
    with pytest.raises(FileNotFoundError):  # the part could not even be begun: that, not its removal, is the error
        spool.write("nowhere/a.dcm", [b"x"])
    spool.remove(name)
    spool.remove(name)
    assert not (tmp_path / name).exists()


def test_a_start_clears_away_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    names = [spool_file(STUDIES, "1.2", f"1.2.{number}") for number in range(2)]
    for name in names:
        spool.write(name, [name.encode()])
    with spool.working_folder(names) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            Path(name).name: name.encode() for name in names
        }
        (folder / "sub").mkdir()
    assert not folder.exists()
    with spool.working_folder([]) as folder:
        folder.rmdir()  # somebody else did
    left = tmp_path / WORK / "left"
    left.mkdir()
    (left / "a").write_bytes(b"a")
    (tmp_path / WORK / f"b{PART}").write_bytes(b"b")
    (tmp_path / WORK / "stray").write_bytes(b"somebody's")
    (tmp_path / STUDIES / "00" / f"c{PART}").write_bytes(b"c")
    spool.clean_up()
    assert [path.name for path in (tmp_path / WORK).iterdir()] == ["stray"]
    (tmp_path / WORK / "stray").unlink()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(names)


def test_a_file_of_a_run_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    disk = Disk(tmp_path, monkeypatch)
    write_text(path, "first")
    assert disk.calls[:2] == ["fsync file", "rename"]
    assert disk.early("*.json") == {path: b"first"}
    for fail in (1, 2):
        disk.calls.clear()
        disk.fail = fail
        with pytest.raises(Exception, match="The disk is full"):
            write_text(path, "second")
        assert [file.read_text() for file in tmp_path.iterdir()] == ["first"]

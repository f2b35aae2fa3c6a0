"""A candidate beside the release in a real node: its answers are kept, nothing is sent, and nothing waits for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from clinic_fixtures import call, environment
from node_process import NodeProcess, wait_for
from peers import Archive, radiograph
from ports import free_port
from pydicom import dcmread

from medopt.core.privacy import pseudonym
from medopt.pacs.ledger import Ledger
from medopt.pacs.spool import Spool
from medopt.release.golden import open_every_model, record_answers
from medopt.release.layout import write_sums


def candidate_of(release: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a release whose int8 model has another threshold, and whose `release.json` has these changes.

    It passes its golden cases, as one that was built so.
    """
    shutil.copytree(release, folder)
    info = json.loads((folder / "release.json").read_text())
    info["models"]["int8"] |= {"threshold": changes.pop("threshold", 0.0), "band": None}
    (folder / "release.json").write_text(json.dumps(info | changes))
    write_sums(folder)
    record_answers(folder, open_every_model(folder, 1), sorted((folder / "golden").iterdir()))
    write_sums(folder)
    return folder


def processes(node: NodeProcess) -> dict[bool, int]:
    """The node's child processes: that of the candidate by True, by how readily the system would end it."""
    assert node.process is not None
    lists = Path(f"/proc/{node.process.pid}/task").glob("*/children")
    pids = map(int, " ".join(path.read_text() for path in lists).split())
    return {Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000": pid for pid in pids}


def shadow(node: NodeProcess) -> dict[str, int]:
    counts: dict[str, int] = node.status().get("shadow", {})
    return counts


def study(folder: Path, number: int) -> Path:
    """A study of one image; those of two hospitals and of three patients by turns."""
    patient = {"patient_id": f"MRN{number % 3}P"}
    path = radiograph(folder / f"{number}.dcm", study=number, number=number, **patient)
    image = dcmread(path)
    image.InstitutionName = f"QUELLENHOF{number % 2}"
    image.Manufacturer, image.DeviceSerialNumber = "ACME", f"SN77{number % 2}Q"
    image.save_as(path)
    return path


def test_paired_answers_by_pseudonyms_and_the_report_of_them(
    start_node_process: Callable[..., NodeProcess], archive: Archive, release: Path, tmp_path: Path
) -> None:
    candidate, page = candidate_of(release, tmp_path / "candidate"), free_port()
    node = start_node_process(
        shadow={"release": str(candidate), "priority": "low"}, results={"heat_maps": 0}, web={"port": page}
    )
    scans = [study(tmp_path, number) for number in range(1, 5)]
    for scan in scans:
        node.deliver(scan)
    wait_for(lambda: shadow(node).get("compared") == 4, node)
    wait_for(lambda: node.status()["sends"] == {"sent": 8}, node)
    health = requests.get(f"http://127.0.0.1:{page}/health", timeout=20).json()
    assert health["healthy"] and health["shadow"] == {"candidate": "ok", **shadow(node)}
    assert "shadow" not in health["parts"]
    metrics = requests.get(f"http://127.0.0.1:{page}/metrics", timeout=20).text
    assert 'medopt_pacs_shadow_studies{state="compared"} 4.0' in metrics and "medopt_pacs_shadow_up 1.0" in metrics
    assert "nothing of it is sent" in requests.get(f"http://127.0.0.1:{page}/", timeout=20).text

    assert node.kill(signal.SIGTERM) == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "spool/audit.jsonl").read_text().splitlines()]
    assert events.count("candidate") == 4 and events[-1] == "stopped"
    assert call("pacs", "audit", "verify", node.file).code == 0
    assert len(archive.kept) == 8  # two reports of each study, as without a candidate

    done = call("shadow", "report", node.file, "--json", "--out", tmp_path / "s.html", "--out", tmp_path / "s.json")
    assert done.code == 0, done.stderr
    found = done.summary
    assert found["studies"] == {"waiting": 0, "compared": 4, "failed": 0, "skipped": 0}
    overall = found["overall"]
    assert (overall["scans"], overall["patients"], len(found["sites"]), len(found["devices"])) == (4, 3, 2, 2)
    assert found["cost"]["cpu_seconds"]["present"] > 0
    positive = overall["findings"]["blob"]["positive"]
    answered = [pair for pair in read_pairs(tmp_path) if not pair[0]["declined"]]
    assert answered and positive["candidate"]["value"] == 1.0  # its threshold is 0
    assert [after["decision"] for _, after in answered] == ["blob"] * len(answered)
    changed = {(one["study"], one["present"]) for one in found["changed"]}
    assert {present for _, present in changed} <= {"clear", "declined"}
    assert {study for study, _ in changed} <= {pseudonym(str(dcmread(scan).StudyInstanceUID)) for scan in scans}
    assert overall["findings"]["blob"]["probability"]["value"] == 0.0  # it is the same model

    written = (tmp_path / "s.html").read_text() + (tmp_path / "s.json").read_text() + done.stdout + node.log_text()
    written += (tmp_path / "spool/audit.jsonl").read_text()
    names = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    hidden = {str(dcmread(scan)[name].value) for scan in scans for name in names} | {"QUELLENHOF", "SN77", "QUITTEN"}
    assert [word for word in hidden if word in written] == []


def at_work(folder: Path) -> bool:
    """Whether the candidate has a study to answer."""
    ledger = Ledger(folder / "spool/ledger.db")
    rows = ledger.rows("SELECT 1 FROM trials WHERE state = 'waiting' AND tries > 0")
    ledger.close()
    return bool(rows)


def read_pairs(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The first scan of each pair of answers in the ledger."""
    ledger = Ledger(folder / "spool/ledger.db")
    rows = ledger.rows("SELECT answers.record AS a, trials.record AS b FROM trials JOIN answers ON id = answer")
    ledger.close()
    return [(json.loads(row["a"])["scans"][0], json.loads(row["b"])["scans"][0]) for row in rows]


def test_a_candidate_that_hangs_crashes_or_disappears_delays_nothing(
    start_node_process: Callable[..., NodeProcess], release: Path, tmp_path: Path
) -> None:
    candidate = candidate_of(release, tmp_path / "candidate")
    node = start_node_process(
        shadow={"release": str(candidate), "priority": "low", "seconds": 10, "backlog": 1}, results={"heat_maps": 0}
    )
    node.deliver(study(tmp_path, 1))
    wait_for(lambda: shadow(node).get("compared") == 1, node)

    os.kill(processes(node)[True], signal.SIGSTOP)  # it hangs
    node.deliver(study(tmp_path, 2))
    wait_for(lambda: shadow(node)["failed"] == 1, node)
    node.deliver(study(tmp_path, 3))  # another process answers
    wait_for(lambda: shadow(node)["compared"] == 2, node)

    crashing = processes(node)[True]
    os.kill(crashing, signal.SIGSTOP)
    node.deliver(study(tmp_path, 4))
    wait_for(lambda: at_work(tmp_path), node)
    candidate.rename(tmp_path / "away")  # and then there is none
    os.kill(crashing, signal.SIGKILL)
    wait_for(lambda: shadow(node)["failed"] == 2, node)

    for number in (5, 6, 7):
        node.deliver(study(tmp_path, number))
    wait_for(lambda: node.status()["studies"] == {"done": 7} and node.status()["sends"] == {"sent": 14}, node)
    assert node.status()["parked"] == []
    assert shadow(node) == {"waiting": 1, "compared": 2, "failed": 2, "skipped": 2}
    wait_for(lambda: "the candidate does not answer" in node.log_text(), node)

    (tmp_path / "away").rename(candidate)
    stopped = time.monotonic()
    assert node.kill(signal.SIGTERM) == 0
    assert time.monotonic() - stopped < 20
    reasons = call("shadow", "report", node.file, "--json").summary["reasons"]
    assert sorted(reasons) == [
        "more studies waited than shadow.backlog allows",
        "the worker process ended before it answered",
        "the worker process took longer than 10 seconds (shadow.seconds)",
    ]


def test_too_much_memory_is_said_and_parks_nothing(
    start_node_process: Callable[..., NodeProcess], release: Path, tmp_path: Path
) -> None:
    candidate = candidate_of(release, tmp_path / "candidate")
    limits = {"release": str(candidate), "priority": "low", "memory_mb": 60}
    node = start_node_process(shadow=limits, results={"heat_maps": 0})
    node.deliver(study(tmp_path, 1))
    wait_for(lambda: node.status()["sends"] == {"sent": 2}, node)
    assert node.status()["studies"] == {"done": 1}
    wait_for(lambda: "more than 60 MB of memory (shadow.memory_mb)" in node.log_text(), node)
    assert shadow(node)["waiting"] == 1


def test_a_candidate_takes_what_nothing_else_wants_and_goes_first(tmp_path: Path) -> None:
    code = (
        "import os; from medopt.pacs.worker_process import _give_way; _give_way(idle={idle}); "
        "print(os.sched_getscheduler(0) == os.SCHED_IDLE, open('/proc/self/oom_score_adj').read().strip())"
    )
    for idle in (True, False):
        command = [sys.executable, "-c", code.format(idle=idle)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        assert done.stdout.split() == [str(idle), "1000"]


def test_a_report_needs_a_candidate_and_its_answers(release: Path, archive: Archive, tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, release, archive)
    call("shadow", "report", node.file).refused(2, "has not run yet")
    Ledger(Spool(tmp_path / "spool").root / "ledger.db").close()
    call("shadow", "report", node.file).refused(3, "no section shadow")
    node = NodeProcess(tmp_path, release, archive, shadow={"release": str(candidate_of(release, tmp_path / "c"))})
    call("shadow", "report", node.file).refused(3, "no study that the release of the node file answered")
    node.close()

"""A store that is slow, locked, shared or gone, and a process that is: training does not wait, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from certificates import LOCAL, make_certificates
from clinic_fixtures import Finished
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Run

from medopt.config import Study
from medopt.core.errors import ConfigError, StorageError
from medopt.core.records import EpochRecord
from medopt.tracking.parent import ParentRun
from medopt.tracking.process import PROCESS, is_dead, this_process
from medopt.tracking.tracker import Tracker
from medopt.tracking.writer import Writer


@pytest.fixture
def runs(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with a store: copied, since to make one takes seconds."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(finished.runs / "mlflow.db", tmp_path)
    return tmp_path


def epochs(count: int) -> list[EpochRecord]:
    return [EpochRecord(e, 1 / (e + 1), 0.5, 0.1 * e, 1e-3, 100.0, 1.0, 0.01) for e in range(count)]


def steps(tracker: Tracker) -> list[int]:
    points = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "curves/loss_train")
    return [point.step for point in points]


def test_training_does_not_wait_for_a_slow_store_and_all_of_it_arrives(
    runs: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, real = Tracker(tiny_study(), runs, None, "slow"), MlflowClient.log_batch

    def log_batch(client: MlflowClient, *args: object, **named: object) -> None:
        time.sleep(1.5)
        real(client, *args, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", log_batch)
        waits = []
        for count in range(1, 8):
            begun = time.perf_counter()
            assert tracker.sync_history(epochs(count)) is None
            waits.append(time.perf_counter() - begun)
        assert max(waits) < 10  # not for as long as the store takes
        assert max(waits[1:]) < 1.5  # once slow, it is not waited for again
        tracker.end("released")
    assert steps(tracker) == [1, 2, 3, 4, 5, 6, 7]


def test_figures_between_two_trainings_are_kept_while_the_store_is_gone(
    runs: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(tiny_study(), runs, None, "gone")

    def log_batch(*_: object, **__: object) -> None:
        raise MlflowException("the store is gone")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", log_batch)
        assert "the store is gone" in str(tracker.log_early({"tuned": {"lr": 0.25}}))
        assert "the store is gone" in str(tracker.sync_history(epochs(1)))
    tracker.end("released")
    points = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "tuned/lr")
    assert [point.value for point in points] == [0.25]
    assert steps(tracker) == [1]


def test_newest_takes_the_place_of_what_waits_and_failures_are_made_up_for() -> None:
    written: list[int] = []
    gate = threading.Event()

    def write(item: int) -> None:
        gate.wait(10)
        if item == 3 and len(written) == 1:
            written.append(-1)
            raise ConfigError("gone")
        written.append(item)

    writer = Writer(write, patience=0.05)
    for item in (1, 2, 3):
        assert writer.put(item) is None
    gate.set()
    writer.finish()
    assert written == [1, -1, 3]  # 2 is part of 3; 3 was tried once more
    assert writer.put(4) is None


def test_what_cannot_be_written_at_the_end_is_told() -> None:
    def write(item: int) -> None:
        raise ConfigError("gone for good")

    writer = Writer(write, patience=5)
    assert "gone for good" in str(writer.put(1))
    with pytest.raises(ConfigError, match="gone for good"):
        writer.finish()


def test_a_locked_store_is_waited_for_beside_the_training(runs: Path, tiny_study: Callable[..., Study]) -> None:
    tracker = Tracker(tiny_study(), runs, None, "locked")
    other = sqlite3.connect(runs / "mlflow.db", isolation_level=None)
    other.execute("begin exclusive")
    waits = []
    for count in (1, 2, 3):
        begun = time.perf_counter()
        tracker.sync_history(epochs(count))
        waits.append(time.perf_counter() - begun)
    assert max(waits) < 10  # not for as long as the store takes
    other.execute("rollback")
    other.close()
    tracker.end("released")
    assert steps(tracker) == [1, 2, 3]


BESIDE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import TINY
from medopt.config import Study
from medopt.core.records import EpochRecord
from medopt.tracking.tracker import Tracker
tracker = Tracker(Study.model_validate(TINY), Path({runs!r}), None, sys.argv[1])
history = [EpochRecord(e, 1.0, 0.5, 0.5, 1e-3, 100.0, 1.0, 0.01) for e in range(30)]
for count in range(1, 31):
    tracker.sync_history(history[:count])
if sys.argv[2] == "end":
    tracker.end("released")
print(tracker.run_id, flush=True)
os._exit(9)  # no exit handler of MLflow's closes the run
"""


def beside(runs: Path, name: str, how: str) -> subprocess.Popen[str]:
    script = BESIDE.format(tests=str(Path(__file__).parents[1]), runs=str(runs))
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen([sys.executable, "-c", script, name, how], stdout=subprocess.PIPE, text=True, env=kept)


def runs_of(runs: Path, ids: Sequence[str]) -> list[Run]:
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    return [client.get_run(one) for one in ids]


def test_two_runs_at_once_and_one_that_crashed(runs: Path, tiny_study: Callable[..., Study]) -> None:
    both = [beside(runs, "one", "end"), beside(runs, "two", "crash")]
    ids = [process.communicate(timeout=120)[0].split()[-1] for process in both]
    ended, crashed = runs_of(runs, ids)
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    whole, begun = (
        [point.step for point in client.get_metric_history(run.info.run_id, "curves/loss_train")]
        for run in (ended, crashed)
    )
    assert whole == list(range(1, 31))
    assert begun == whole[: len(begun)]  # the last may not have been written yet, but there is no gap
    assert ended.info.status == "FINISHED"  # the other may have begun after this one had crashed
    other = Tracker(tiny_study(), runs, None, "other")  # the next start of medopt on that runs folder
    alive = runs_of(runs, [other.run_id])[0]
    ended, crashed = runs_of(runs, ids)
    assert (crashed.info.status, crashed.data.tags["outcome"]) == ("FAILED", "crashed")
    assert (ended.info.status, alive.info.status) == ("FINISHED", "RUNNING")
    other.end("released")
    again = Tracker(tiny_study(), runs, ids[1], "two")
    assert runs_of(runs, ids)[1].info.status == "RUNNING"
    again.end("released")
    crashed = runs_of(runs, ids)[1]
    assert (crashed.info.status, crashed.data.tags["outcome"]) == ("FINISHED", "released")


def test_a_run_of_a_living_process_is_left_alone(runs: Path, tiny_study: Callable[..., Study]) -> None:
    parent = ParentRun(tiny_study(), runs, None, "group", {})
    tracker = Tracker(tiny_study(), runs, None, "member", parent.run_id)
    assert [run.info.status for run in runs_of(runs, [parent.run_id, tracker.run_id])] == ["RUNNING", "RUNNING"]
    assert runs_of(runs, [parent.run_id])[0].data.tags[PROCESS] == this_process()
    tracker.end("released")
    parent.end("done")


def test_only_a_process_that_is_known_to_be_gone_is_dead() -> None:
    host, boot, space, number, start = this_process().split(" ")
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not is_dead(this_process())
    assert is_dead(" ".join((host, boot, space, str(gone.pid), start)))
    assert is_dead(" ".join((host, boot, space, number, "1.00")))  # its number was given to another one
    assert is_dead(" ".join((host, "another-boot", space, number, start)))
    for elsewhere in (
        " ".join(("elsewhere", boot, space, str(gone.pid), start)),
        " ".join((host, boot, "another-container", str(gone.pid), start)),
        "",
        "a tag that somebody wrote",
    ):
        assert not is_dead(elsewhere), elsewhere


def test_an_artifact_store_that_is_full_is_a_refusal_and_the_same_command_goes_on(
    runs: Path, tiny_study: Callable[..., Study], tiny_disk: Callable[[int], Path]
) -> None:
    disk = tiny_disk(256)
    (runs / "mlartifacts").symlink_to(disk)
    tracker = Tracker(tiny_study(), runs, None, "full")
    large = runs / "large.bin"
    large.write_bytes(os.urandom(1 << 20))
    with pytest.raises(StorageError, match="disk is full"):
        tracker.log_files({"tables": large})
    tracker.end("StorageError", "FAILED")
    large.write_bytes(b"small enough")
    again = Tracker(tiny_study(), runs, tracker.run_id, "full")
    again.log_files({"tables": large})
    again.end("released")
    client = MlflowClient(again.uri)
    assert client.get_run(again.run_id).info.status == "FINISHED"
    (kept,) = client.list_artifacts(again.run_id, "tables")
    assert kept.file_size == len(b"small enough")


def test_a_certificate_of_a_foreign_authority_is_said(
    tmp_path: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_certificates(tmp_path, {"ca": {"server": LOCAL}})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    try:
        with pytest.raises(ConfigError, match=r"no authority known here signed.*MLFLOW_TRACKING_SERVER_CERT_PATH"):
            Tracker(tiny_study(), tmp_path, None, "nobody")
    finally:
        server.shutdown()
        server.server_close()

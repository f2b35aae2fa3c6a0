"""The folder of one run: found again by what went in, locked against a second process, its finished stages known."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from medopt import __version__
from medopt.config import Study
from medopt.core.errors import BusyError
from medopt.core.files import storage, write_json, write_text
from medopt.core.provenance import digest
from medopt.core.records import StageRecord
from medopt.core.reporter import Reporter
from medopt.data.cache import content_digest


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/<study>/<time>-<short hash>/`."""

    path: Path
    is_new: bool

    @property
    def models(self) -> Path:
        """Float and int8 ONNX files before they become a release."""
        return self.path / "models"

    @property
    def release(self) -> Path:
        """What goes into service."""
        return self.path / "release"

    def facts(self) -> dict[str, Any]:
        """`run.json`: the MLflow run and the outcome, empty for a new run."""
        try:
            found: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            return found
        except (OSError, ValueError):
            return {}

    def write_facts(self, **facts: Any) -> None:
        """Add to `run.json`."""
        write_json(self.path / "run.json", self.facts() | facts)

    def stage(
        self,
        name: str,
        inputs: Any,
        outputs: Sequence[Path],
        work: Callable[[], dict[str, Any]],
        reporter: Reporter,
    ) -> dict[str, Any]:
        """Run a stage, or skip it where its inputs are as before and its outputs are untouched; returns its facts.

        `outputs` are files, or folders with all that is in them.
        """
        wanted, record = digest({"medopt": __version__, "inputs": inputs}), self._record(name)
        if record is not None and record.inputs == wanted and record.outputs == self._hashes(outputs):
            reporter.stage(name, "unchanged, skipped")
            return record.facts
        reporter.stage(name, "")
        started = time.perf_counter()
        facts = work()
        done = StageRecord(name, wanted, self._hashes(outputs), round(time.perf_counter() - started, 2), facts)
        # Not write_json: an epoch's figure may be NaN, and Python reads it back.
        write_text(self._record_path(name), json.dumps(asdict(done), indent=2) + "\n")
        return facts

    def forget(self, name: str) -> None:
        """Let a stage run again although its inputs are unchanged."""
        self._record_path(name).unlink(missing_ok=True)

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took, in the order of their end."""
        files = sorted((self.path / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        records = [self._record(path.stem) for path in files]
        return {record.stage: record.seconds for record in records if record is not None}

    def _record_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def _record(self, name: str) -> StageRecord | None:
        try:
            return StageRecord(**json.loads(self._record_path(name).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _hashes(self, outputs: Sequence[Path]) -> dict[str, str]:
        return {str(path.relative_to(self.path)): content_digest(path) if path.exists() else "" for path in outputs}


def short_hash(study: Study, manifest_digest: str) -> str:
    """Eight digits for what went in: the resolved study and the manifest's content."""
    return digest({"study": study.digest(), "manifest": manifest_digest})[:8]


def find_run(runs: Path, study: Study, manifest_digest: str) -> Path | None:
    """The newest folder of a run with the same study and manifest."""
    pattern = f"*-{short_hash(study, manifest_digest)}"
    return max((path for path in (runs / study.name).glob(pattern) if path.is_dir()), default=None)


def _new_path(folder: Path, short: str) -> Path:
    """A name of this second, or of the next that is free."""
    moment = datetime.now()
    while (path := folder / f"{moment:%Y%m%d-%H%M%S}-{short}").exists():
        moment += timedelta(seconds=1)
    return path


@contextmanager
def open_run(runs: Path, study: Study, manifest_digest: str, fresh: bool = False) -> Iterator[RunFolder]:
    """Go on in the folder of the same study and manifest, or make a new one; held against other processes.

    Raises as `held` does.
    """
    found = None if fresh else find_run(runs, study, manifest_digest)
    path = found or _new_path(runs / study.name, short_hash(study, manifest_digest))
    with held(path, is_new=found is None) as folder:
        yield folder


@contextmanager
def held(path: Path, is_new: bool) -> Iterator[RunFolder]:
    """A folder, made where it is not there, held against other processes.

    A new folder in which nothing was begun is taken away again. Raises BusyError where another process runs in it,
    StorageError where it cannot be made.
    """
    with storage(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"Another process is running in {path}. Wait for it, or start a run of its own with --fresh."
            ) from None
        for part in path.rglob(".*.part"):  # of a process that was killed while it wrote
            if part.is_file():
                part.unlink()
        folder = RunFolder(path, is_new)
        try:
            yield folder
        except BaseException:
            if folder.is_new and not folder.facts():
                shutil.rmtree(path, ignore_errors=True)
            raise

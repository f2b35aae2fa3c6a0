"""The folder of one run: found again by what its training reads, locked against a second process, its records."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.errors import BusyError
from medopt.core.files import storage, write_json, write_text
from medopt.core.records import StageRecord
from medopt.data.cache import content_digest
from medopt.pipeline.run_0_1 import training_key_of
from medopt.pipeline.stage_settings import training_key
from medopt.training.job import BEST

FLOAT, NARROW, QUANTIZED, INT8 = "float.onnx", "pruned.onnx", "quantized.onnx", "int8.onnx"
"""Below models/: the whole and the pruned network, its int8 form, and the same as the gate judged it."""
TRAINING = "training"  # in run.json: the key by which the folder is found
CHECKPOINT_STUDY = "checkpoint_study"  # in run.json of a folder that version 0.1.0 began


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
    def best_weights(self) -> Path:
        """The weights that training kept."""
        return self.path / "checkpoints" / BEST

    @property
    def checkpoint_study(self) -> str:
        """The study's digest that the checkpoints of a folder of version 0.1.0 carry; else ""."""
        return str(self.facts().get(CHECKPOINT_STUDY, ""))

    @property
    def release(self) -> Path:
        """What goes into service."""
        return self.path / "release"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.path / "figures"

    def facts(self) -> dict[str, Any]:
        """`run.json`: the MLflow run and the outcome, empty for a new run."""
        try:
            facts: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            return facts
        except (OSError, ValueError):
            return {}

    def write_facts(self, **facts: Any) -> None:
        """Add to `run.json`."""
        write_json(self.path / "run.json", self.facts() | facts)

    def record(self, stage: str) -> StageRecord | None:
        """The record of a completed stage; None where there is none that can be read."""
        try:
            return StageRecord(**json.loads(self._record_path(stage).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_record(self, record: StageRecord) -> None:
        """Keep what a stage came to."""
        # Not write_json: an epoch's figure may be NaN, and Python reads it back.
        write_text(self._record_path(record.stage), json.dumps(asdict(record), indent=2) + "\n")

    def forget(self, stage: str) -> None:
        """Let a stage run again although nothing that it reads has changed."""
        self._record_path(stage).unlink(missing_ok=True)

    def seconds(self) -> dict[str, float]:
        """How long each completed stage took, in the order of their end."""
        files = sorted((self.path / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        records = [self.record(path.stem) for path in files]
        return {record.stage: record.seconds for record in records if record is not None}

    def hashes(self, outputs: Sequence[Path]) -> dict[str, str]:
        """SHA-256 of files, or of folders with all that is in them; "" for what is not there."""
        return {str(path.relative_to(self.path)): content_digest(path) if path.exists() else "" for path in outputs}

    def _record_path(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"


def find_run(runs: Path, study: Study, cases_digest: str) -> Path | None:
    """The newest folder of a run with the same training on the same cases; those of version 0.1.0 are found, too."""
    key = training_key(study, cases_digest)
    folders = [path for path in (runs / study.name).glob("*-*-????????") if path.is_dir()]
    return max((path for path in folders if _trains_alike(path, key)), default=None)


def _trains_alike(folder: Path, key: str) -> bool:
    """Whether the training in a folder has this key: by its record, its name while it begins, or its files."""
    recorded = RunFolder(folder, False).facts().get(TRAINING)
    return recorded == key if recorded else folder.name.endswith(key[:8]) or training_key_of(folder) == key


def new_path(folder: Path, short: str) -> Path:
    """A name of this second, or of the next that is free."""
    moment = datetime.now()
    while (path := folder / f"{moment:%Y%m%d-%H%M%S}-{short}").exists():
        moment += timedelta(seconds=1)
    return path


@contextmanager
def open_run(runs: Path, study: Study, cases_digest: str, fresh: bool = False) -> Iterator[RunFolder]:
    """Go on in the folder of the same training on the same cases, or make a new one; locked against other processes.

    Raises as `locked_folder` does.
    """
    key = training_key(study, cases_digest)
    known = None if fresh else find_run(runs, study, cases_digest)
    path = known or new_path(runs / study.name, key[:8])
    with locked_folder(path, is_new=known is None) as folder:
        yield folder


@contextmanager
def locked_folder(path: Path, is_new: bool) -> Iterator[RunFolder]:
    """A folder, made where it is not there, locked against other processes.

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

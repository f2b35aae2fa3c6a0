"""What a stage of a run is, and how a run completes its stages: what is unchanged is skipped.

A stage reads some settings of the study (`stage_settings.READS`) and takes the results of some stages before it. These,
with its revision, are its key: it runs again when its key or a file that it wrote has changed, and for no other reason.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from medopt.config import Study
from medopt.core import signals
from medopt.core.provenance import digest
from medopt.core.records import EpochRecord, StageRecord
from medopt.core.reporter import Reporter
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage_settings import settings_digest
from medopt.pipeline.study_cases import StudyCases
from medopt.tracking.tracker import Tracker
from medopt.training.hardware import Hardware

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class NoResult:
    """The result of a stage that only writes files."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """A run under way: where its stages read, write and report, and what those before have come to."""

    cases: StudyCases
    folder: RunFolder
    tracker: Tracker
    reporter: Reporter
    runs: Path
    networks: tuple[Path, ...]
    """The weights of the trained network, or those of each member of an ensemble."""
    notes: list[str] = field(default_factory=list)
    """How the models came about, where that is not by one training; it stands beside all figures."""
    hardware: Hardware = field(default_factory=lambda: Hardware(1))
    on_history: Callable[[Sequence[EpochRecord]], None] | None = None
    """Hears of every epoch of the training, and may raise Pruned."""
    results: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def study(self) -> Study:
        """The study that is run."""
        return self.cases.study

    def result(self, stage: type[Stage[Result]]) -> Result:
        """What a stage, or the one that stands in its place, came to. Raises KeyError where it was not completed."""
        return cast(Result, self.results[stage.name])

    def say(self, problem: str | None) -> None:
        """Show a problem that does not stop the run."""
        if problem:
            self.reporter.message(problem)


class Stage(ABC, Generic[Result]):
    """One step of the way from the scans to the release.

    `name` is the file of its record in the run folder's `stages/`. Raise `revision` when the same inputs come to
    something else than before.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ()
    """The stages whose results it takes, by name."""
    result_type: ClassVar[type] = NoResult

    def settings(self, study: Study) -> str:
        """SHA-256 of the settings that it reads: those of `stage_settings.READS`."""
        return settings_digest(study, self.name)

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The files, or folders with all that is in them, that it writes."""
        return ()

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """What it depends on beside settings and inputs."""
        return {}

    @abstractmethod
    def run(self, context: RunContext) -> Result:
        """Do the work, and return what came of it."""

    def finish(self, context: RunContext, result: Result, *, skipped: bool) -> None:
        """What is due whether the stage ran or was skipped."""

    def is_current(self, record: StageRecord, context: RunContext, key: str) -> bool:
        """Whether a record was made with this key."""
        return record.inputs == key

    def complete(self, context: RunContext) -> None:
        """Run the stage, or take its recorded result where neither its key nor its files have changed."""
        signals.raise_if_interrupted()
        key, folder, outputs = self.key(context), context.folder, self.outputs(context.folder)
        record, result = folder.record(self.name), None
        if record and self.is_current(record, context, key) and record.outputs == folder.hashes(outputs):
            result = self._recorded(record)
        skipped = record is not None and result is not None
        context.reporter.stage(self.name, "unchanged, skipped" if skipped else "")
        if record is None or result is None:
            started = time.perf_counter()
            result = self.run(context)
            facts = TypeAdapter[Any](self.result_type).dump_python(result, mode="json")
            seconds = round(time.perf_counter() - started, 2)
            settings = self.settings(context.study)
            record = StageRecord(self.name, key, folder.hashes(outputs), seconds, facts, settings)
            folder.write_record(record)
        context.results[self.name] = result
        context.digests[self.name] = digest({"outputs": record.outputs, "result": record.facts})
        self.finish(context, result, skipped=skipped)

    def key(self, context: RunContext) -> str:
        """SHA-256 of all that decides what the stage comes to."""
        missing = [name for name in self.inputs if name not in context.digests]
        if missing:
            raise RuntimeError(f"stage {self.name} takes the result of {', '.join(missing)}, which was not completed")
        return digest(
            {
                "revision": self.revision,
                "settings": self.settings(context.study),
                "inputs": {name: context.digests[name] for name in self.inputs},
                "more": self.depends_on(context),
            }
        )

    def _recorded(self, record: StageRecord) -> Result | None:
        try:
            return cast(Result, TypeAdapter(self.result_type).validate_python(record.facts))
        except ValidationError:
            return None


def complete(stages: Iterable[Stage[Any]], context: RunContext) -> None:
    """Complete stages in their order."""
    for stage in stages:
        stage.complete(context)

"""A group of runs below one MLflow run: its folder, held while its members run, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medopt.config import Study
from medopt.core.errors import MedoptError, StorageError
from medopt.core.files import local_disk
from medopt.pipeline.run_folder import RunFolder, locked_folder
from medopt.tracking.parent import ParentRun


@dataclass(slots=True)
class RunGroup:
    """`runs/<study>/<kind>-<hash>/` and the MLflow run that the members name as their parent."""

    folder: RunFolder
    parent: ParentRun
    is_open: bool = True

    def end(self, outcome: str, status: str = "FINISHED") -> None:
        """Close it, once."""
        if self.is_open:
            self.is_open = False
            try:
                self.folder.write_facts(outcome=outcome)
            except StorageError:  # what ended the group is the news
                if status == "FINISHED":
                    raise
            self.parent.end(outcome, status)


@contextmanager
def open_group(path: Path, study: Study, runs: Path, tags: Mapping[str, str]) -> Iterator[RunGroup]:
    """Go on with the group of this folder, or begin it; what goes wrong within closes it as failed or interrupted."""
    with locked_folder(path, is_new=not path.exists()) as folder:
        name = f"{path.name} {study.name}"
        parent = ParentRun(study, runs, folder.facts().get("mlflow_run_id"), name, tags)
        folder.write_facts(mlflow_run_id=parent.run_id, outcome="running")
        group = RunGroup(folder, parent)
        try:
            with local_disk():
                yield group
        except KeyboardInterrupt:
            group.end("interrupted", "KILLED")
            raise
        except MedoptError as error:
            group.end(type(error).__name__, "FAILED")
            raise
        except BaseException:
            group.end("crashed", "FAILED")
            raise

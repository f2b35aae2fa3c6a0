"""`medopt predict --on ray`: an archive in parts, each predicted by a job of a cluster; the answers in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.jobs import Fleet, Job, connected, parts_for, run_jobs
from medopt.core.records import batches
from medopt.core.reporter import Reporter
from medopt.release.layout import Kind
from medopt.release.predictor import Predictor
from medopt.serving.batch import predict_scans
from medopt.serving.prediction_table import Row

LEAST = 32  # scans of a job: opening the release takes about as long as predicting so many


def predict_archive(
    release: Path, kind: Kind, engine: str | None, scans: Sequence[Path], fleet: Fleet, reporter: Reporter
) -> Iterator[Row]:
    """Rows in the order of `scans`, as soon as all before them are there.

    The release is opened, and so checked, by every job. Raises the error of the first part that could not be predicted.
    """
    with connected(fleet):
        parts = list(batches(len(scans), -(-len(scans) // parts_for(fleet, len(scans), LEAST))))
        jobs = [
            Job(f"part {number + 1}", predict_part, (release.resolve(), kind, engine, scans[part], fleet.cpus))
            for number, part in enumerate(parts)
        ]
        places = {job.name: number for number, job in enumerate(jobs)}
        held: dict[int, list[Row]] = {}
        given = 0
        for outcome in run_jobs(jobs, fleet, reporter, len(jobs), "predicting"):
            if outcome.error is not None:
                raise outcome.error
            held[places[outcome.job.name]] = outcome.result
            while given in held:
                yield from held.pop(given)
                given += 1


def predict_part(
    reporter: Reporter, release: Path, kind: Kind, engine: str | None, scans: Sequence[Path], threads: int
) -> list[Row]:
    """One job: the rows of some scans. Raises DataError where this machine does not see them."""
    absent = [path for path in scans if not path.exists() and ".npz#" not in str(path)]
    if absent:
        raise DataError(
            f"A machine of the cluster does not see {len(absent)} of {len(scans)} scans, as {absent[0]}. All of them "
            "must see the archive and the release under the same paths."
        )
    return list(predict_scans(Predictor.open(release, kind, engine, threads, "throughput"), scans, reporter, threads))

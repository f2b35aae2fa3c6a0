"""Filling the cache of prepared images as jobs, so that the machines of a cluster share the decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medopt.config import Prepare
from medopt.core.jobs import Fleet, Job, job_count, refuse_failures, run_jobs
from medopt.core.records import Case, batches
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedCache
from medopt.pipeline.study_cases import StudyCases
from medopt.transforms.prepare import PrepareChain

LEAST = 64  # images of a job: opening a process must not take longer than its work


def fill_cache(source: StudyCases, runs: Path, fleet: Fleet, reporter: Reporter) -> int:
    """Prepare all images of a study that the cache does not hold yet; returns how many images there are.

    Raises DataError that lists the images that could not be read.
    """
    cases = source.cases
    parts = job_count(fleet, len(cases), LEAST)
    cut = list(batches(len(cases), -(-len(cases) // parts)))
    place = (source.root.resolve(), (runs / "cache").resolve(), fleet.cpus if fleet.engine == "ray" else None)
    jobs = [
        Job(f"images {part.start + 1} to {part.stop}", prepare_part, (source.study.prepare, cases[part], *place))
        for part in cut
    ]
    outcomes = list(run_jobs(jobs, fleet, reporter, len(jobs), f"preparing {source.study.name}"))
    refuse_failures(outcomes, "parts")
    return len(cases)


def prepare_part(
    reporter: Reporter, prepare: Prepare, cases: Sequence[Case], root: Path, folder: Path, workers: int | None
) -> int:
    """One job: the prepared images of some cases."""
    return len(PreparedCache(folder, PrepareChain(prepare)).fill(cases, root, reporter, workers))

"""How fast a study's training is on this machine, stage by stage, and what it would choose: measured in a minute."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from medopt.config import Study
from medopt.config.shipped import shipped_study
from medopt.config.study_file import load_study
from medopt.core.files import write_json
from medopt.core.provenance import machine
from medopt.core.records import Case
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedCache
from medopt.manifest.table import read_manifest
from medopt.phantom import draw_study
from medopt.pipeline.study_cases import read_source
from medopt.tracking.tracker import Tracker
from medopt.training.job import PreparedSplit
from medopt.training.throughput import READ, Throughput, measure_throughput
from medopt.transforms.prepare import PrepareChain

DRAWN = "phantom"  # the study that is measured where none is given


def bench_study(
    study: Study, study_file: Path, data: Path, runs: Path, reporter: Reporter, *, compiles: bool, seconds: float
) -> Throughput:
    """Measure with the study's own training images; raises ConfigError or DataError where they cannot be read."""
    source = read_source(study, study_file, data, runs)
    cases = [case for case in source.cases if case.split == "train"]
    return _measured(source.study, cases, source.root, runs / "cache", reporter, compiles=compiles, seconds=seconds)


def bench_drawn(overrides: list[str], reporter: Reporter, *, compiles: bool, seconds: float) -> Throughput:
    """Measure with a few drawn radiographs, as the shipped study `phantom` trains on them."""
    study = load_study(shipped_study(DRAWN), overrides)
    with tempfile.TemporaryDirectory(prefix="medopt-bench-") as folder:
        manifest = draw_study(Path(folder) / DRAWN, patients=2 * READ)
        cases = [case for case in read_manifest(manifest, study) if case.split == "train"]
        root, cache = manifest.parent, Path(folder) / "cache"
        return _measured(study, cases, root, cache, reporter, compiles=compiles, seconds=seconds)


def _measured(
    study: Study, cases: list[Case], root: Path, cache: Path, reporter: Reporter, *, compiles: bool, seconds: float
) -> Throughput:
    some = cases[:: max(1, len(cases) // READ)][:READ]
    files = PreparedCache(cache, PrepareChain(study.prepare)).fill(some, root, reporter)
    scans = [
        tuple(f"{root / image}" if image else "" for image in case.channels) or f"{root / case.image}" for case in some
    ]
    split = PreparedSplit(some, files)
    return measure_throughput(study, split, scans, reporter, compiles=compiles, seconds=seconds, total=len(cases))


def bench_values(study: str, measured: Throughput) -> dict[str, object]:
    """The result as JSON holds it, with the machine that it was measured on."""
    return {"study": study, "date": time.strftime("%Y-%m-%d"), "machine": asdict(machine()), **asdict(measured)}


def log_bench(study: Study, values: Mapping[str, object], runs: Path) -> str:
    """Keep the result in MLflow, as a run of the study's experiment with a file and metrics; returns its page."""
    tracker = Tracker(study, runs, None, f"bench-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        stages = values["stages"]
        assert isinstance(stages, tuple)
        speeds = {stage["name"].replace(",", ""): stage["images_per_second"] for stage in stages}
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / "bench.json", dict(values))
            tracker.log_files({"": Path(folder) / "bench.json"})
        tracker.log_figures({"bench": {"images_per_second": speeds}})
    except BaseException:
        tracker.end("failed", "FAILED")
        raise
    tracker.end("measured")
    return tracker.link

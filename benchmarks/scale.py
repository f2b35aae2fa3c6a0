"""How long does a manifest of one million rows take: read, checked without pixels, split and sampled?

    python benchmarks/scale.py [--rows 1000000] [--json]

The images are members of seven archives of real, tiny images, so that the check looks for each of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from medopt.core.provenance import machine
from medopt.data.samplers import StepSampler
from medopt.manifest.check import check_cases
from medopt.manifest.infer_study import infer_study
from medopt.manifest.run_manifest import manifest_digest
from medopt.manifest.splits import SplitRules, assign_splits
from medopt.manifest.table import read_manifest
from medopt.planning.fingerprint import take_fingerprint

SITES = 7
T = TypeVar("T")


def write_million(folder: Path, rows: int) -> Path:
    """A manifest of `rows` rows: three images a patient, two classes, seven sites."""
    images = np.random.default_rng(0).integers(0, 255, (rows // SITES + 1, 8, 8), np.uint8)
    for site in range(SITES):
        np.savez(folder / f"site_{site}.npz", images=images)
    path = folder / "million.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient_id", "study_uid", "series_uid", "site", "label", "split"])
        for row in range(rows):
            patient, site = row // 3, (row // 3) % SITES
            writer.writerow(
                [
                    f"site_{row % SITES}.npz#images/{row // SITES}",
                    f"patient-{patient:07d}",
                    f"1.2.840.99.{patient}",
                    f"1.2.840.99.{patient}.{row}",
                    f"site_{site}",
                    "finding" if patient % 5 == 0 else "none",
                    ("train", "train", "train", "val", "test")[(patient // 7) % 5],
                ]
            )
    return path


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    words = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="medopt-scale-"))
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        done = work()
        seconds[name] = time.perf_counter() - started
        return done

    try:
        manifest = write_million(folder, words.rows)
        study = timed("labels", lambda: infer_study(manifest))
        cases = timed("read", lambda: read_manifest(manifest, study))
        timed("digest", lambda: manifest_digest(cases))
        findings = timed("check without pixels", lambda: check_cases(cases, folder, study))
        assert not [finding for finding in findings if finding.severity == "refuse"], findings

        def split() -> Any:
            patients, sites = (np.array([getattr(case, name) for case in cases]) for name in ("patient_id", "site"))
            labels = np.array([case.label[0] for case in cases])[:, None] == np.arange(2)
            own = np.full(len(cases), "")
            return assign_splits(patients, labels, sites, own, SplitRules(), study.data.labels)

        timed("split", split)
        sampler = StepSampler(study, cases, 16, 16, 0, 1)
        sampler.epoch = 1
        timed("order of an epoch", lambda: list(sampler))
        timed("sample for a plan", lambda: take_fingerprint(cases, study.data.labels, study.data.task, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table = Table("", "s", title=f"{words.rows} rows", title_justify="left")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("all", f"{sum(seconds.values()):.1f}")
    Console().print(table)
    print(f"largest memory of the process: {peak / 1e9:.2f} GB")
    if words.json:
        total = sum(seconds.values())
        print(
            json.dumps(
                {"rows": words.rows, "seconds": seconds, "total_s": total, "peak_bytes": peak} | asdict(machine())
            )
        )


if __name__ == "__main__":
    main()

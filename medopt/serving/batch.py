"""`medopt predict`: a release over files and folders, one row a scan; an unreadable scan is a row with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from medopt.core.errors import DataError
from medopt.core.jobs import Fleet, Job, connected, job_count, run_jobs
from medopt.core.records import batches
from medopt.core.reporter import Reporter, SilentReporter
from medopt.imaging.channels import ScanPath, scan_name
from medopt.imaging.parallel import parallel_map
from medopt.imaging.scan_path import files_below
from medopt.manifest.csv_text import read_csv
from medopt.release.case_covariates import Cells
from medopt.release.layout import Kind
from medopt.release.predictor import Answer, PreparedCase, Release
from medopt.serving.prediction_table import Row

MIN_SCANS_OF_A_JOB = 32  # opening the release takes about as long as predicting so many
# Files of a data folder that are not scans.
IGNORED = {".csv", ".json", ".txt", ".md", ".yaml", ".yml", ".xml", ".html", ".pdf", ".ds_store"}
Prepared = PreparedCase | DataError


def find_scans(paths: Iterable[Path], spatial_dims: int) -> list[Path]:
    """The scans below the paths, sorted.

    A 3-D release takes each folder that directly holds files without a NIfTI suffix as one series; a 2-D one takes each
    file. Raises DataError where a path does not exist or nothing is found.
    """
    scans: list[Path] = []
    for path in paths:
        if path.is_dir():
            scans += _below(path, spatial_dims)
        elif path.exists() or ".npz#" in str(path):
            scans.append(path)
        else:
            raise DataError(f"There is no file or folder {path}.")
    if not scans:
        raise DataError("There is no scan below the paths given.")
    return scans


def _below(folder: Path, spatial_dims: int) -> list[Path]:
    files = [p for p in map(folder.joinpath, files_below(folder)) if p.is_file() and p.suffix.lower() not in IGNORED]
    files = [p for p in files if not p.name.startswith(".") and p.name != "DICOMDIR"]
    if spatial_dims == 2:
        return files
    volumes = [p for p in files if p.name.lower().endswith((".nii", ".nii.gz"))]
    return volumes + sorted({p.parent for p in set(files) - set(volumes)})


def find_cases(paths: Sequence[Path], names: Sequence[str]) -> list[ScanPath]:
    """Cases of several images: NAME=FILE for each image of one case, or tables (CSV) with the columns image:NAME.

    Paths in a table start from its folder; an empty cell is a missing image. Raises DataError naming what is wrong.
    """
    named = [path for path in paths if "=" in str(path) and not path.exists()]
    given: dict[str, str] = {}
    for name, _, file in (str(path).partition("=") for path in named):
        if name not in names:
            raise DataError(f"{name} is not an image name of this release; a case has {', '.join(names)}.")
        if name in given:
            raise DataError(f"{name} is given twice; give each image of the case once.")
        given[name] = file
    cases: list[ScanPath] = [tuple(given.get(name, "") for name in names)] if given else []
    for path in (path for path in paths if path not in named):
        if path.suffix.lower() != ".csv":
            raise DataError(
                f"A case of this release has {len(names)} images: give {' '.join(f'{name}=FILE' for name in names)} or "
                f"a CSV with the columns {', '.join(f'image:{name}' for name in names)}; {path} is neither."
            )
        lines = read_csv(path, "The table of cases")
        header = next(lines, (1, []))[1]
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise DataError(f"The table of cases {path} has the column {twice[0]} twice.")
        if missing := [name for name in names if f"image:{name}" not in header]:
            raise DataError(f"The table of cases {path} has no column image:{missing[0]}; it has {', '.join(header)}.")
        for number, cells in lines:
            if len(cells) != len(header):
                raise DataError(
                    f"The table of cases {path}, row {number} has {len(cells)} cells; the header has {len(header)}."
                )
            row = dict(zip(header, cells, strict=True))
            images = [row[f"image:{name}"] for name in names]
            if not any(images):
                raise DataError(f"The table of cases {path}, row {number} has no image.")
            cases.append(tuple(f"{path.parent / image}" if image else "" for image in images))
    if not cases:
        raise DataError("There is no case in what was given.")
    return cases


def predict_scans(
    release: Release,
    scans: Sequence[ScanPath],
    reporter: Reporter | None = None,
    workers: int | None = None,
    covariates: Sequence[Cells] | None = None,
) -> Iterator[Row]:
    """Predict scans in order, in batches of the release's size, while `workers` processes decode the next ones.

    `covariates` are those that are known of each scan.

    At most a batch of prepared images and two scans a worker are in memory. `workers` None takes one a core.
    """
    advance = (reporter or SilentReporter()).progress(len(scans), "predicting")
    known = list(zip(scans, covariates or [{}] * len(scans), strict=True))
    decoded = parallel_map(lambda pair: _prepare(release, *pair), known, workers)
    for part in batches(len(scans), release.setting.batch):
        for row in _rows(release, scans[part], list(islice(decoded, part.stop - part.start))):
            yield row
            advance(1)


def _rows(release: Release, paths: Sequence[ScanPath], prepared: Sequence[Prepared]) -> list[Row]:
    """Rows of one batch. Where the model has no answer, each scan is predicted alone: one of them is at fault."""
    readable = [scan for scan in prepared if isinstance(scan, PreparedCase)]
    try:
        answers = iter(_predict(release, readable) if readable else ())
    except DataError as error:  # a logit that is not a number
        if len(prepared) == 1:
            return [Row(scan_name(paths[0]), None, f"{scan_name(paths[0])}: {error}")]
        return [row for path, scan in zip(paths, prepared, strict=True) for row in _rows(release, [path], [scan])]
    return [
        Row(name, next(answers), facts=scan.acquisition)
        if isinstance(scan, PreparedCase)
        else Row(name, None, str(scan))
        for name, scan in zip(map(scan_name, paths), prepared, strict=True)
    ]


def _predict(release: Release, prepared: Sequence[PreparedCase]) -> list[Answer]:
    images, acquisitions, cells = zip(*prepared, strict=True)
    return release.predict_batch(np.stack(images), acquisitions, cells)


def _prepare(release: Release, path: ScanPath, covariates: Cells) -> Prepared:
    try:
        return release.prepare_case(path, covariates)
    except DataError as error:
        return error


def predict_archive(
    release: Path,
    kind: Kind,
    engine: str | None,
    scans: Sequence[ScanPath],
    fleet: Fleet,
    reporter: Reporter,
    covariates: Sequence[Cells] | None = None,
) -> Iterator[Row]:
    """Predict an archive in parts, each by a job of a cluster; rows come in the order of `scans`.

    Every job opens the release, and so checks it. Raises the error of the first part that could not be predicted.
    """
    with connected(fleet):
        parts = list(batches(len(scans), -(-len(scans) // job_count(fleet, len(scans), MIN_SCANS_OF_A_JOB))))
        known, place = covariates or [{}] * len(scans), release.resolve()
        jobs = [
            Job(f"part {number + 1}", predict_part, (place, kind, engine, scans[part], known[part], fleet.cpus))
            for number, part in enumerate(parts)
        ]
        numbers = {job.name: number for number, job in enumerate(jobs)}
        waiting: dict[int, list[Row]] = {}
        given = 0
        for outcome in run_jobs(jobs, fleet, reporter, len(jobs), "predicting"):
            if outcome.error is not None:
                raise outcome.error
            waiting[numbers[outcome.job.name]] = outcome.result
            while given in waiting:
                yield from waiting.pop(given)
                given += 1


def predict_part(
    reporter: Reporter,
    release: Path,
    kind: Kind,
    engine: str | None,
    scans: Sequence[ScanPath],
    covariates: Sequence[Cells],
    threads: int,
) -> list[Row]:
    """One job: the rows of some scans. Raises DataError where this machine does not see them."""
    paths = [str(path) for scan in scans for path in (scan if isinstance(scan, tuple) else (scan,)) if str(path)]
    absent = [path for path in paths if not Path(path).exists() and ".npz#" not in path]
    if absent:
        raise DataError(
            f"A machine of the cluster does not see {len(absent)} of {len(paths)} scans, as {absent[0]}. All of them "
            "must see the archive and the release under the same paths."
        )
    opened = Release.open(release, kind, engine, threads, "throughput")
    return list(predict_scans(opened, scans, reporter, threads, covariates))

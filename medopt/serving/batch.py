"""`medopt predict`: a release over files and folders, one row a scan; what cannot be read is a row with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medopt.errors import DataError
from medopt.imaging.facts import ScanFacts
from medopt.records import FloatArray, Reporter, SilentReporter
from medopt.release.predictor import Predictor
from medopt.serving.answers import Row

# Names that belong to a data folder but are no scans.
IGNORED = {".csv", ".json", ".txt", ".md", ".yaml", ".yml", ".xml", ".html", ".pdf", ".ds_store"}


def find_scans(paths: Iterable[Path], spatial_dims: int) -> list[Path]:
    """The scans below the paths, sorted.

    A 3-D release takes each folder that directly holds files without a NIfTI suffix as one series; a 2-D one takes each
    file. Raises DataError where a path does not exist or nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _below(path, spatial_dims)
        elif path.exists() or ".npz#" in str(path):
            found.append(path)
        else:
            raise DataError(f"There is no file or folder {path}.")
    if not found:
        raise DataError("There is no scan below the paths given.")
    return found


def _below(folder: Path, spatial_dims: int) -> list[Path]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() not in IGNORED]
    files = [p for p in files if not p.name.startswith(".") and p.name != "DICOMDIR"]
    if spatial_dims == 2:
        return files
    volumes = [p for p in files if p.name.lower().endswith((".nii", ".nii.gz"))]
    return volumes + sorted({p.parent for p in set(files) - set(volumes)})


def predict_scans(
    predictor: Predictor, scans: Sequence[Path], reporter: Reporter | None = None, workers: int = 2
) -> Iterator[Row]:
    """Predict scans in order; decoding runs ahead of the model in threads, at most a few scans in memory."""
    advance = (reporter or SilentReporter()).progress(len(scans), "predicting")
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(scans), 4 * workers):
            part = scans[start : start + 4 * workers]
            for path, prepared in zip(part, pool.map(lambda p: _prepare(predictor, p), part), strict=True):
                yield _row(predictor, path, prepared)
                advance(1)


def _row(predictor: Predictor, path: Path, prepared: tuple[FloatArray, ScanFacts] | DataError) -> Row:
    if isinstance(prepared, DataError):
        return Row(str(path), None, str(prepared))
    try:
        image, facts = prepared
        return Row(str(path), predictor.predict(image[None], [facts])[0], facts=facts)
    except DataError as error:  # a logit that is not a number
        return Row(str(path), None, f"{path}: {error}")


def _prepare(predictor: Predictor, path: Path) -> tuple[FloatArray, ScanFacts] | DataError:
    try:
        return predictor.prepare(path)
    except DataError as error:
        return error

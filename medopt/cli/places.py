"""What a RUN, a RELEASE and a data folder on the command line mean: folders found before anything heavy is imported."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medopt.cli.command import note
from medopt.core.errors import ConfigError, DataError, MedoptError, ReleaseError

if TYPE_CHECKING:
    from medopt.config import Study

_RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_RELEASE = "release"


def run_folder(given: Path) -> Path:
    """The folder of a run: itself, the one that a release lies in, or the newest evaluated run of a study's folder.

    A folder that is none of these is returned as it is, and whatever reads it says what is missing. Raises DataError
    where there is nothing.
    """
    _there(given, "run folder or prediction table")
    if _is_release(given) and _is_run(given.resolve().parent):
        return given.parent if given.name == _RELEASE else given.resolve().parent
    if _is_run(given):
        return given
    newest = _newest(given)
    if newest is not None:
        note(f"the newest run of {given}: {newest}")
    return newest or given


def release_folder(given: Path) -> Path:
    """The folder of a release: itself, that of a run, that of the newest run of a study's folder, or a registered one.

    models:/NAME@ALIAS is fetched from MLflow's registry and kept; where the registry does not answer, the one that was
    fetched last is taken, and stderr says so. Raises ReleaseError for a folder without a release.
    """
    if str(given).startswith("models:"):
        return _registered(str(given))
    _there(given, _RELEASE)
    if _is_release(given):
        return given
    if _is_release(given / _RELEASE):
        return given / _RELEASE
    if _is_run(given):
        raise ReleaseError(f"The run {given} has no release: {_why_no_release(given)}")
    newest = _newest(given)
    if newest is None:
        raise ReleaseError(
            f"{given} is not a release, nor the folder of a run or of a study that has one. A release is "
            "runs/STUDY/TIME-HASH/release."
        )
    if not _is_release(newest / _RELEASE):
        raise ReleaseError(f"The newest run of {given}, {newest.name}, has no release: {_why_no_release(newest)}")
    note(f"the release of the newest run of {given}: {newest / _RELEASE}")
    return newest / _RELEASE


def _there(given: Path, what: str) -> None:
    if not given.exists():
        error: type[MedoptError] = ReleaseError if what == _RELEASE else DataError
        names = [path.name for path in given.parent.glob("*")] if given.parent.is_dir() else []
        near = difflib.get_close_matches(given.name, names, n=1)
        hint = f" Did you mean {given.parent / near[0]}?" if near else ""
        raise error(f"There is no {what} {given}.{hint}")


def _is_release(folder: Path) -> bool:
    return (folder / "release.json").is_file() or (folder / "SHA256SUMS").is_file()


def _is_run(folder: Path) -> bool:
    return (folder / "study.yaml").is_file() or (folder / "metrics.json").is_file()


def _newest(folder: Path) -> Path | None:
    """The newest evaluated run of a study's folder: their names begin with the time."""
    runs = (path for path in folder.iterdir() if _RUN_NAME.fullmatch(path.name)) if folder.is_dir() else ()
    return max((path for path in runs if (path / "metrics.json").is_file()), default=None, key=lambda path: path.name)


def _why_no_release(run: Path) -> str:
    if not (run / "metrics.json").is_file():
        return "it was not finished. The same `medopt run` goes on where it was."
    return "its int8 model was refused by the gate. metrics.json there has the reasons; give another run's folder."


def _registered(uri: str) -> Path:
    from medopt.tracking.fetch import fetch_release

    store = os.environ.get("MLFLOW_TRACKING_URI")
    if not store:
        from medopt.tracking.store import tracking_uri

        store = tracking_uri(Path("runs"))
    kept = os.environ.get("MEDOPT_RELEASES")
    folder = Path(kept) if kept else Path.home() / ".cache" / "medopt" / "releases"
    fetched = fetch_release(uri, store, folder)
    if fetched.note:
        typer.echo(f"{uri}: {fetched.note}", err=True)
    return fetched.place


def require_scans(paths: Iterable[Path]) -> None:
    """Refuse scans that are not there, before a release is opened; raises DataError."""
    for path in paths:
        if not _exists(path):
            raise DataError(f"There is no file or folder {path}.")


def study_data(study: Study, study_file: Path, given: Path | None) -> Path:
    """The data folder of a study: --data as it is; else MEDOPT_DATA or ./data, else beside the manifest.

    The latter where the first does not have the manifest's first image.
    """
    from medopt.config.study_file import data_folder, find_manifest

    usual = data_folder(given)
    if given is not None:
        return given
    try:
        manifest = find_manifest(study, study_file, usual)
    except ConfigError:
        return usual  # whoever reads the manifest says where it was looked for
    root = Path(study.data.root)
    places = [usual / root, manifest.parent / root]
    inside = manifest.parent.parts[-len(root.parts) :] == root.parts if root.parts else False
    folders = [usual, manifest.parent]
    if inside:  # the manifest lies in the study's root: data/phantom/manifest.csv
        places.append(manifest.parent)
        folders.append(Path(*manifest.parent.parts[: -len(root.parts)]))
    place = with_first_image(manifest, places)
    return usual if place is None else folders[places.index(place)]


def with_first_image(manifest: Path, places: Iterable[Path]) -> Path | None:
    """The first of these folders that has the first image of a manifest; None where none has."""
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            image = (next(csv.DictReader(stream, skipinitialspace=True), {}).get("image") or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return next((place for place in places if image and _exists(place / image)), None)


def _exists(path: Path) -> bool:
    """Whether a scan is there: a file, a folder, or a part of one after #."""
    return path.exists() or ("#" in str(path) and Path(str(path).rpartition("#")[0]).exists())

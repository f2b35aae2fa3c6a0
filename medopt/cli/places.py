"""What a RUN, a RELEASE and a data folder on the command line mean: folders found before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medopt.cli.command import note
from medopt.core.errors import ConfigError, DataError
from medopt.core.run_paths import find_release, find_run, is_registered, require_registry

if TYPE_CHECKING:
    from medopt.config import Study


def run_folder(path: Path) -> Path:
    """The folder of a run, as `find_run`; says which one where it was looked for."""
    folder = find_run(path)
    if folder.parent == path:
        note(f"the newest run of {path}: {folder}")
    return folder


def release_folder(path: Path, runs: Path = Path("runs")) -> Path:
    """The folder of a release, as `find_release`; says which one where it was looked for. Or a registered one.

    models:/NAME@ALIAS is fetched from MLflow's registry, which is that of MLFLOW_TRACKING_URI, else that of the runs
    folder, and kept; where the registry does not answer, the one that was fetched last is taken, and stderr says so.
    """
    if is_registered(path):
        return _registered(str(path), runs)
    folder = find_release(path)
    if folder.parent.parent == path:
        note(f"the release of the newest run of {path}: {folder}")
    return folder


def _registered(uri: str, runs: Path) -> Path:
    from medopt.tracking.fetch import registered_release

    require_registry(runs)
    fetched = registered_release(uri, runs)
    if fetched.note:
        typer.echo(f"{uri}: {fetched.note}", err=True)
    return fetched.place


def require_scans(paths: Iterable[Path]) -> None:
    """Refuse scans that are not there, before a release is opened; raises DataError.

    A path may be NAME=FILE: an image of a case that has several.
    """
    for path in paths:
        _, named, file = str(path).partition("=")
        if not (_exists(path) or (named and _exists(Path(file)))):
            raise DataError(f"There is no file or folder {file if named else path}.")


def study_data(study: Study, study_file: Path, data: Path | None) -> Path:
    """The data folder of a study: --data as it is; else MEDOPT_DATA or ./data, by the manifest's card, or beside it.

    Of these the first that has the manifest's first image.
    """
    from medopt.config.study_file import data_folder, find_manifest
    from medopt.manifest.card import card_root

    usual = data_folder(data)
    if data is not None:
        return data
    try:
        manifest = find_manifest(study, study_file, usual)
    except ConfigError:
        return usual  # whoever reads the manifest says where it was looked for
    root = Path(study.data.root)
    places = [usual / root]
    by_card = card_root(manifest)
    if by_card is not None and (not root.parts or by_card.resolve().parts[-len(root.parts) :] == root.parts):
        places.append(by_card)
    places.append(manifest.parent / root)
    inside = manifest.parent.parts[-len(root.parts) :] == root.parts if root.parts else False
    folders = [usual, manifest.parent]
    if len(places) > 2:
        folders.insert(1, Path(*places[1].resolve().parts[: -len(root.parts)]) if root.parts else places[1])
    if inside:  # the manifest lies in the study's root: data/phantom/manifest.csv
        places.append(manifest.parent)
        folders.append(Path(*manifest.parent.parts[: -len(root.parts)]))
    place = with_first_image(manifest, places)
    return usual if place is None else folders[places.index(place)]


def with_first_image(manifest: Path, places: Iterable[Path]) -> Path | None:
    """The first of these folders that has the first image of a manifest; None where none has."""
    from medopt.manifest.csv_text import read_csv

    try:
        lines = read_csv(manifest, "The manifest")
        header, first = next(lines, (1, []))[1], next(lines, (2, []))[1]
    except DataError:
        return None
    images = (cell for name, cell in zip(header, first, strict=False) if cell and name.partition(":")[0] == "image")
    image = next(images, "")
    return next((place for place in places if image and _exists(place / image)), None)


def _exists(path: Path) -> bool:
    """Whether a scan is there: a file, a folder, or a part of one after #."""
    return path.exists() or ("#" in str(path) and Path(str(path).rpartition("#")[0]).exists())

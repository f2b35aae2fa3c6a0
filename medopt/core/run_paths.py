"""Which folder a RUN or a RELEASE means: a study's folder (its newest run), a run's folder or a release's."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from medopt.core.errors import ConfigError, DataError, ReleaseError

_RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")  # its time first, so that the last name is the newest run
_RELEASE = "release"
SUMS, SBOM = "SHA256SUMS", "sbom.cdx.json"
"""Of a release: the list of checksums, whose own SHA-256 names the release; and the list of packages."""


def find_run(path: str | Path) -> Path:
    """The folder of a run: itself, the one that a release lies in, or the newest evaluated run of a study's folder.

    A folder that is none of these is returned as it is: whatever reads it says what is missing. Raises DataError where
    there is nothing.

    Example::

        find_run("runs/phantom")  # runs/phantom/20260101-120000-0a1b2c3d
    """
    folder = Path(path)
    if is_registered(folder):
        raise DataError(
            f"{folder} names a release, and a run is needed here: its checkpoints or its predictions, which a release "
            "does not hold. Give the run's folder; the version's run in MLflow names it (tag run_folder)."
        )
    if not folder.exists():
        raise DataError(f"There is no run folder or prediction table {folder}.{_hint(folder)}")
    if _is_release(folder) and _is_run(folder.resolve().parent):
        return folder.parent if folder.name == _RELEASE else folder.resolve().parent
    return folder if _is_run(folder) else _newest(folder) or folder


def find_release(path: str | Path) -> Path:
    """The folder of a release: itself, that of a run's folder, or that of the newest evaluated run of a study's folder.

    Raises ReleaseError where there is none; an older run's release is never taken in place of the newest one's.

    Example::

        find_release("runs/phantom")  # runs/phantom/20260101-120000-0a1b2c3d/release
    """
    folder = Path(path)
    if is_registered(folder):
        raise ReleaseError(
            f"{folder} is in MLflow's registry, and a folder is needed here: `medopt pull {folder}` fetches and checks "
            "it, and prints its folder."
        )
    if not folder.exists():
        raise ReleaseError(f"There is no release {folder}.{_hint(folder)}")
    if _is_release(folder):
        return folder
    run = folder if _is_run(folder) else _newest(folder)
    if run is None:
        raise ReleaseError(
            f"{folder} is not a release: it holds neither release.json nor runs. Give a release folder, the folder of "
            "a run, or the folder of a study's runs."
        )
    if not _is_release(run / _RELEASE):
        raise ReleaseError(
            f"The run {run} has no release: it did not finish, or a verdict did not pass its model: not better than "
            "chance, or int8 did not pass the gate (metrics.json there has the reasons). The same `medopt run` goes on "
            "with it; or give another run's folder."
        )
    return run / _RELEASE


def is_registered(path: str | Path) -> bool:
    """Whether a path names a release of MLflow's registry: models:/NAME@ALIAS or models:/NAME/VERSION."""
    return str(path).startswith("models:")


def require_registry(runs: Path) -> None:
    """Raise ConfigError where nothing says which registry models:/NAME@ALIAS is of.

    It is that of MLFLOW_TRACKING_URI, else that of the store in a runs folder; opening one that is not there would make
    an empty one.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (runs / "mlflow.db").is_file():
        raise ConfigError(
            f"No registry to ask: MLFLOW_TRACKING_URI is not set, and {runs} holds no mlflow.db. Set "
            "MLFLOW_TRACKING_URI, or name the folder of the runs with --runs."
        )


def _is_release(folder: Path) -> bool:
    return (folder / "release.json").is_file() or (folder / SUMS).is_file()


def _is_run(folder: Path) -> bool:
    return (folder / "study.yaml").is_file() or (folder / "metrics.json").is_file()


def _newest(folder: Path) -> Path | None:
    """The newest evaluated run of a study's folder; one that still trains is not looked at."""
    runs = (path for path in folder.iterdir() if _RUN_NAME.fullmatch(path.name)) if folder.is_dir() else ()
    return max((path for path in runs if (path / "metrics.json").is_file()), default=None, key=lambda path: path.name)


def _hint(folder: Path) -> str:
    names = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1)
    return f" Did you mean {folder.parent / near[0]}?" if near else ""

"""A release out of MLflow's registry, kept on this machine, so that it is there when the server is not.

Where a release only serves, `mlflow-skinny` is enough.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from medopt.core.errors import ConfigError, ReleaseError, first_line
from medopt.core.files import file_digest, sync
from medopt.release.layout import SUMS, check_sums

PREFIX = "models:/"
DIGEST = "release_sha256"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True, slots=True)
class Fetched:
    """`place` is a link to the release's folder, which is named by its digest; the link turns when another comes."""

    place: Path
    version: str
    note: str = ""
    """Why the registry was not asked, where it did not answer."""


def fetch_release(uri: str, store: str, folder: Path) -> Fetched:
    """The release that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means, from the MLflow store at an address.

    Downloaded once, checked against its own checksums and against the digest that the registry wrote down when it was
    logged. Where the store does not answer, the release that was fetched last under this name is given, and the note
    says so. Raises ConfigError where there is none; ReleaseError for one that is not what was logged.
    """
    name, alias, number = parse_uri(uri)
    place = folder / (uri.removeprefix(PREFIX).replace("/", "@"))
    try:
        version, digest = _resolved(store, name, alias, number)
        release = folder / digest[:16]
        if not release.exists():
            _download(store, name, version, digest, release)
        _check(release, digest)
        _turn(place, release)
        return Fetched(place, version)
    except _Unreachable as error:
        if not place.exists():
            raise ConfigError(
                f"MLflow's registry does not answer ({error}), and {uri} was not fetched to {folder} before. Look "
                "whether the server runs (MLFLOW_TRACKING_URI), or give a release folder."
            ) from None
        check_sums(place)
        return Fetched(place, "", f"the registry does not answer; {place.resolve().name}, fetched before, serves")


def registered_release(uri: str, runs: Path = Path("runs")) -> Fetched:
    """As `fetch_release`, from the store that MLFLOW_TRACKING_URI names or that of a runs folder, kept in
    MEDOPT_RELEASES or the user's cache."""
    store = os.environ.get("MLFLOW_TRACKING_URI")
    if not store:
        from medopt.tracking.store import tracking_uri

        store = tracking_uri(runs)
    kept = os.environ.get("MEDOPT_RELEASES")
    return fetch_release(uri, store, Path(kept) if kept else Path.home() / ".cache" / "medopt" / "releases")


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """The name of a registered model and its alias or its version; raises ConfigError for another form.

    >>> parse_uri("models:/lesions@champion"), parse_uri("models:/lesions/4")
    (('lesions', 'champion', None), ('lesions', None, '4'))
    """
    asked = _URI.fullmatch(uri)
    if asked is None:
        raise ConfigError(f"{uri!r} names no version: it takes models:/NAME@ALIAS or models:/NAME/VERSION.")
    return asked["name"], asked["alias"], asked["version"]


class _Unreachable(Exception):
    """The store does not answer."""


def _resolved(store: str, name: str, alias: str | None, version: str | None) -> tuple[str, str]:
    """The version and the digest of its release; raises ConfigError where credentials would be sent in clear."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from medopt.tracking.credentials import require_encrypted

    require_encrypted(store)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        client = MlflowClient(store, store)
        found = (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, str(version))
        )
    except MlflowException as error:
        reason = first_line(error)
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ConfigError(f"The registry at {store} has no {name} {alias or version}: {reason}") from None
        raise _Unreachable(reason) from None
    digest = found.tags.get(DIGEST)
    if not digest:
        raise ReleaseError(
            f"Version {found.version} of {name} holds no release of medopt (it has no {DIGEST}). Promote one that "
            "`medopt run` or `medopt compress` registered."
        )
    return str(found.version), digest


def _download(store: str, name: str, version: str, digest: str, folder: Path) -> None:
    """Fetch to a neighbouring name, check, and rename; what was fetched in part is taken away."""
    import mlflow

    folder.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        try:
            with redirect_stderr(StringIO()):
                # `models:/` itself would be looked up in the store that this process uses, whatever is given here
                place = mlflow.MlflowClient(store, store).get_model_version_download_uri(name, version)
                got = mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=part, tracking_uri=store)
        except Exception as error:  # each kind of store has its own
            raise _Unreachable(first_line(error)) from None
        sums = sorted(Path(got).rglob(SUMS))
        if not sums:
            raise ReleaseError(f"Version {version} of {name} holds no release (there is no {SUMS} in it).")
        _check(sums[0].parent, digest)
        for file in [*sums[0].parent.rglob("*"), sums[0].parent]:
            sync(file)
        if folder.exists():  # another process was faster
            return
        shutil.move(sums[0].parent, folder)
        sync(folder.parent)


def _check(release: Path, digest: str) -> None:
    if file_digest(release / SUMS) != digest:
        raise ReleaseError(f"{release} is not the release that was logged: its digest is another. Delete it and retry.")
    check_sums(release)


def _turn(place: Path, release: Path) -> None:
    """Let the link point to a release, in one step."""
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(release.name)
    fresh.replace(place)
    sync(place.parent)

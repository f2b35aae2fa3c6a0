"""What MLflow, its database and its artifact store raise becomes our error, with the way out of that one cause."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import threading
from collections.abc import Iterator

import mlflow
from sqlalchemy.exc import SQLAlchemyError

from medopt.core.errors import ConfigError, StorageError, first_line
from medopt.core.signals import ending_signals

_AGAIN = "Then give the same command again."
_GONE = re.compile(r"The (?P<kind>experiment|run) (?P<id>\S+) must be in the 'active' state")
_UNREACHABLE = re.compile(
    r"connection|timed out|timeout|max retries|failed to establish|name resolution|50[234] error|error code 50[234]",
    re.IGNORECASE,
)
_FULL = re.compile(r"disk is full|no space left|quota exceeded", re.IGNORECASE)
_NOT_WRITABLE = re.compile(r"readonly|read-only|unable to open database|permission denied", re.IGNORECASE)
_DAMAGED = re.compile(r"malformed|not a database|no such (table|column)", re.IGNORECASE)


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what MLflow, its database and its artifact store raise into a ConfigError with the way out."""
    try:
        with uninterrupted():
            yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        raise translated(error, uri) from error


def translated(error: Exception, uri: str) -> ConfigError:
    """The error that says what happened to the store, and what to do about that cause and no other."""
    reason, text = first_line(error), str(error)
    if gone := _GONE.search(text):
        return deleted(uri, gone["kind"], gone["id"])
    if "out-of-date database schema" in text:
        return ConfigError(
            f"{_place(uri)} was written by an older MLflow. Copy it, then run `mlflow db upgrade {uri}`."
        )
    if "Can't locate revision" in text:
        return ConfigError(f"{_place(uri)} was written by a newer MLflow: install that version, or a newer one.")
    if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return ConfigError(
            f"{_place(uri)} lacks what is asked of it: {reason}. Either it was removed for good, or it is in another "
            "store: look at MLFLOW_TRACKING_URI and --runs."
        )
    return _of_file(error, uri, reason) if uri.startswith("sqlite") else _of_server(error, uri, reason)


def deleted(uri: str, kind: str, identifier: str, name: str = "") -> ConfigError:
    """An experiment or a run that somebody deleted, and the command that restores it."""
    option = "--experiment-id" if kind == "experiment" else "--run-id"
    return ConfigError(
        f"The {kind} {name or identifier} was deleted in {_place(uri)}. Restore it: "
        f"`MLFLOW_TRACKING_URI={uri} mlflow {kind}s restore {option} {identifier}`. {_AGAIN}"
    )


def _place(uri: str) -> str:
    return f"MLflow's store {uri.removeprefix('sqlite:///')}" if uri.startswith("sqlite") else f"MLflow at {uri}"


def _of_file(error: Exception, uri: str, reason: str) -> ConfigError:
    """The store in the runs folder: a database and files on a disk."""
    number, text = getattr(error, "errno", None), str(error)
    what = f"{_place(uri)} cannot be used: {reason}."
    if number in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(text):
        return StorageError(f"{what} The disk is full: make room. {_AGAIN}")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or _NOT_WRITABLE.search(text):
        return StorageError(
            f"{what} It may not be written to: change its permissions, or name another --runs. {_AGAIN}"
        )
    if "locked" in text:
        return StorageError(f"{what} Another process writes to it for long: wait until that has ended. {_AGAIN}")
    if _DAMAGED.search(text):
        return StorageError(
            f"{what} The file is damaged: bring back a copy of it, or move it away, and an empty one is made."
        )
    return StorageError(what)


def _of_server(error: Exception, uri: str, reason: str) -> ConfigError:
    """A team's server: it does not know or allow this user, is not trusted, does not answer, or refuses."""
    text, code = str(error), getattr(error, "error_code", "")
    if "error code 401" in text or code == "UNAUTHENTICATED":
        said = (
            "does not know this user or password, or was told none (401): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write mlflow_tracking_username and mlflow_tracking_password below [mlflow] "
            f"in ~/.mlflow/credentials. {_AGAIN}"
        )
    elif "error code 403" in text or code == "PERMISSION_DENIED":
        said = (
            "does not allow this user to do that (403): have its administrator give the user EDIT on the experiment "
            "and on the registered model, or sign in as another one (MLFLOW_TRACKING_USERNAME, "
            f"MLFLOW_TRACKING_PASSWORD). {_AGAIN}"
        )
    elif "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        said = (
            "has a certificate that no authority known here signed: name the file of its authority (PEM), export "
            f"MLFLOW_TRACKING_SERVER_CERT_PATH=/etc/ssl/certs/hospital.pem. {_AGAIN}"
        )
    elif _UNREACHABLE.search(text):
        said = (
            f"does not answer: {reason}. Look whether its server runs, or unset MLFLOW_TRACKING_URI to track into the "
            f"runs folder. {_AGAIN}"
        )
    else:
        said = f"refuses what it is sent: {reason}. The server's log says more."
    return ConfigError(f"MLflow at {uri} {said}")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block is done.

    An SQLite session that is torn in the middle keeps the store locked, so that the run could not be closed.
    """
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in ending_signals()}
    for number in before:
        signal.signal(number, lambda found, _frame: held.append(found))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for found in held[:1]:
            signal.raise_signal(found)

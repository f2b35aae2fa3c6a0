"""What went wrong, where, and what to do: one class and one exit code for each kind of refusal.

A user's mistake never ends in a traceback. The text of an error is one paragraph: the fact with the value and the
place (file, row, key), then the way out. It never contains a patient identifier
or a credential.
"""

from __future__ import annotations

import errno

from medopt.core.privacy import without_credentials


class MedoptError(Exception):
    """Base class of all refusals; `exit_code` is what the command line returns.

    >>> import medopt
    >>> try:
    ...     medopt.read_scan("nowhere.dcm")
    ... except medopt.MedoptError as error:
    ...     print(type(error).__name__, error.exit_code, str(error)[:31])
    DataError 3 There is no file nowhere.dcm. C
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        """Any credential in the text is hidden, wherever the text comes from."""
        super().__init__(*(without_credentials(each) if isinstance(each, str) else each for each in args))


class ConfigError(MedoptError):
    """A study file, an option or an output path that cannot be used."""

    exit_code = 2


class StorageError(ConfigError):
    """The disk is full, or the folder may not be written to."""


class BusyError(ConfigError):
    """Another process is working in this folder."""


class DataError(MedoptError):
    """Scans, labels or splits that must not be trained on or predicted from."""

    exit_code = 3


class TrainingError(MedoptError):
    """Training cannot continue: the loss is not a number, or a checkpoint is damaged."""

    exit_code = 4


class Pruned(TrainingError):
    """A trial of a sweep that was stopped early, because others were better at the same epoch."""


class ReleaseRefused(MedoptError):
    """There is no release: the model is not shown to be better than chance, or int8 did not pass the gate."""

    exit_code = 5


class ReleaseError(MedoptError):
    """A release that was changed or is incomplete, or whose chain this version cannot reproduce."""

    exit_code = 6


def storage_error(error: OSError, place: object = None) -> StorageError | None:
    """What the disk refuses in words, with the way out; None for every other error of the system.

    `place` is what was being written; without it the error says which file, and may come from reading as well.
    """
    what = place or error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = "The disk is full" if error.errno == errno.ENOSPC else "The disk is full for this user (quota)"
        return StorageError(
            f"{full}: writing {what or 'a file'} failed. Free some space, then give the same command again (a run "
            "continues where it was), or write to another disk."
        )
    if what and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # without a file: a port or a process
        may = "written to" if place or error.errno == errno.EROFS else "read or written"
        return StorageError(
            f"{what} may not be {may} ({error.strerror}). Change its permissions or choose another folder."
        )
    return None


def first_line(error: Exception) -> str:
    """The first line of another library's error, short enough for a text of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def listed(items: list[str], limit: int = 5) -> str:
    """The first items for the text of an error, and the number of the others.

    >>> listed(["a.dcm", "b.dcm", "c.dcm"], 2)
    'a.dcm; b.dcm; and 1 more'
    """
    text = "; ".join(items[:limit])
    return text if len(items) <= limit else f"{text}; and {len(items) - limit} more"

"""What went wrong, where, and what to do: one class and one exit code for each kind of refusal.

A user's mistake never ends in a traceback. Every error carries one paragraph: the fact with the value and the
place (file, row, key), then the way out. It never carries a patient identifier.
"""

from __future__ import annotations


class MedoptError(Exception):
    """Base of all refusals; `exit_code` is what the command line returns.

    >>> import medopt
    >>> try:
    ...     medopt.read_scan("nowhere.dcm")
    ... except medopt.MedoptError as error:
    ...     print(type(error).__name__, error.exit_code, str(error)[:31])
    DataError 3 There is no file nowhere.dcm. C
    """

    exit_code = 1


class ConfigError(MedoptError):
    """A study file, an option or a place to write to that cannot be used."""

    exit_code = 2


class StorageError(ConfigError):
    """The disk is full, or the folder may not be written to."""


class BusyError(ConfigError):
    """Another process works in this folder."""


class DataError(MedoptError):
    """Scans, labels or splits that must not be trained on or predicted from."""

    exit_code = 3


class TrainingError(MedoptError):
    """Training cannot go on: the loss is not a number, a checkpoint is damaged."""

    exit_code = 4


class Pruned(TrainingError):
    """A trial of a sweep that was given up before its end, because others were better at the same epoch."""


class GateRefused(MedoptError):
    """The compressed model is not as good as the float model, or not faster."""

    exit_code = 5


class ReleaseError(MedoptError):
    """A release that was changed, is incomplete, or whose chain this version cannot reproduce."""

    exit_code = 6


def first_line(error: Exception) -> str:
    """What another library's error says, short enough to stand within ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def listed(items: list[str], most: int = 5) -> str:
    """Join a few findings for an error text and count the rest."""
    shown = "; ".join(items[:most])
    return shown if len(items) <= most else f"{shown}; and {len(items) - most} more"

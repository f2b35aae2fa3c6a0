"""OpenVINO, NNCF and MLflow (which MONAI imports) report their use to a web service, unasked. Not from here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_REPORTER, _VARIABLE = "openvino_telemetry", "MLFLOW_DISABLE_TELEMETRY"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import one of them in this block: each looks once, when it is imported, whether it may report.

    Afterwards `sys.modules` and the environment are as before, but for what was imported.
    """
    barred, unset = _REPORTER not in sys.modules, _VARIABLE not in os.environ
    disable_mlflow_telemetry()
    if barred:
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # this is how Python bars a module
    try:
        yield
    finally:
        if barred:
            del sys.modules[_REPORTER]
        if unset:
            del os.environ[_VARIABLE]


def disable_mlflow_telemetry() -> None:
    """For this process and those that it starts, whatever imports MLflow there."""
    os.environ.setdefault(_VARIABLE, "true")

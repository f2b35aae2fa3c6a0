"""A hospital's machine, and one that trains, tells nobody outside what it does."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, socket, sys

def refuse(*args, **kwargs):
    raise SystemExit(f"a connection was opened: {args}")

socket.socket.connect = refuse
import medopt, medopt.models, medopt.inference.engines, medopt.compression.quantize
assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry
assert isinstance(telemetry, NNCFTelemetryStub), telemetry
import mlflow, mlflow.telemetry.client  # MONAI imports it where it is installed
assert mlflow.telemetry.client.get_telemetry_client() is None
import medopt.tracking
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"  # for the processes that MLflow starts
"""


def test_the_engines_do_not_report_their_use() -> None:
    surroundings = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=surroundings, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr

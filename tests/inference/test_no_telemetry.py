"""A hospital's machine, and one that trains, tells nobody outside what it does."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, socket, sys

def refuse(*args, **kwargs):
    raise SystemExit(f"a connection was opened: {args}")

socket.socket.connect = refuse
import medopt, medopt.inference.engines, medopt.compression.quantize
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
assert sys.modules["openvino_telemetry"] is None
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry
assert isinstance(telemetry, NNCFTelemetryStub), telemetry
"""


def test_the_engines_do_not_report_their_use() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

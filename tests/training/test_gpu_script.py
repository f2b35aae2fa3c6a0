"""The script that checks a GPU, end to end on a CPU: so that it cannot rot where no GPU is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = """
import runpy, sys
for name in ("mlflow", "openvino", "nncf"):
    sys.modules[name] = None  # importing it fails
sys.argv = ["gpu.py", "--device", "cpu", "--tiny", "--json"]
runpy.run_path("gpu.py", run_name="__main__")
"""


@pytest.mark.system
def test_checks_and_speeds_need_neither_gpu_nor_registry() -> None:
    command = [sys.executable, "-c", PROGRAM]
    env = {**os.environ, "PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{BENCHMARKS}"}
    done = subprocess.run(command, cwd=BENCHMARKS, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["checks"]) == 8 and all(text.startswith("passed") for text in found["checks"].values())
    assert found["checks"]["images from everywhere"].endswith("equal to the bit")
    loops = {one["loop"] for one in found["speeds"]}
    assert {"bare step", "medopt", "plain loop, DataLoader"} <= loops
    assert all(one["images_per_second"] > 0 and one["share"] > 0 for one in found["speeds"])

"""A small `benchmarks/pacs.py`: a real Orthanc, a real node, killed once while it receives, predicts and sends."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from clinic_fixtures import call
from peers import radiograph
from pydicom import dcmread

KILLS = int(os.environ.get("MEDOPT_TEST_NODE_KILLS", "3"))
_SOURCE = Path(__file__).parents[2] / "benchmarks" / "pacs.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pacs_benchmark", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # its dataclasses look themselves up
    spec.loader.exec_module(found)
    if found.orthanc_program() is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc)")
    return found


@pytest.fixture
def orthanc(bench: ModuleType, tmp_path: Path) -> Iterator[Any]:
    one = bench.Orthanc(tmp_path)
    yield one
    one.stop()


def test_one_set_of_results_of_every_study_in_orthanc(
    bench: ModuleType, orthanc: Any, release: Path, tmp_path: Path
) -> None:
    scans = [[dcmread(radiograph(tmp_path / "scans" / f"{n}.dcm", study=n, number=n))] for n in (1, 2, 3)]
    node = bench.Node(tmp_path, release, orthanc)
    try:
        node.begin()
        node.wait_for_port()
        told = bench.measure_kills(node, bench.studies(scans, 6, "test"), 6, KILLS, seed=1)
        assert told["studies"] == 6
        assert sum(told["hit"].values()) >= KILLS
        again = bench.Sent()
        for study in bench.studies(scans, 6, "test"):  # all of it once more
            bench.send(node, study, again)
        found = bench.judged(node, orthanc, objects=2)
        assert found == {"answered": 6, "one_set": 6, "differ": 0, "strangers": 0, "parked": 0}
        assert node.kill(signal.SIGTERM) == 0
    finally:
        node.close()
    assert call("pacs", "audit", "verify", node.file).code == 0

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
from test_shadow import candidate_of

KILLS = int(os.environ.get("MEDOPT_TEST_NODE_KILLS", "3"))
_SOURCE = Path(__file__).parents[2] / "benchmarks" / "pacs.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pacs_benchmark", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    if module.orthanc_program() is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc)")
    return module


@pytest.fixture
def orthanc(bench: ModuleType, tmp_path: Path) -> Iterator[Any]:
    pacs = bench.Orthanc(tmp_path)
    yield pacs
    pacs.stop()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with a candidate"])
def test_one_set_of_results_of_every_study_in_orthanc(
    bench: ModuleType, orthanc: Any, release: Path, tmp_path: Path, beside: bool
) -> None:
    scans = [[dcmread(radiograph(tmp_path / "scans" / f"{n}.dcm", study=n, number=n))] for n in (1, 2, 3)]
    candidate: dict[str, Any] = {}
    if beside:
        candidate["shadow"] = {"release": str(candidate_of(release, tmp_path / "candidate")), "priority": "low"}
    node = bench.Node(tmp_path, release, orthanc, **candidate)
    try:
        node.start()
        node.wait_for_port()
        outcome = bench.measure_kills(node, bench.studies(scans, 6, "test"), 6, KILLS, seed=1)
        assert outcome["studies"] == 6
        assert sum(outcome["hit"].values()) >= KILLS
        log = bench.SendLog()
        for study in bench.studies(scans, 6, "test"):  # all of it once more
            bench.send(node, study, log)
        counts = bench.compare_with_orthanc(node, orthanc, objects=2)
        assert counts == {"answered": 6, "complete": 6, "differ": 0, "unknown": 0, "parked": 0}
        if beside:
            trials = bench.wait_for_trials(node)
            assert trials["waiting"] == 0 and trials["compared"] >= 1
            assert sum(trials.values()) == node.rows("SELECT count(*) FROM answers")[0][0]
        assert node.kill(signal.SIGTERM) == 0
    finally:
        node.close()
    assert call("pacs", "audit", "verify", node.file).code == 0

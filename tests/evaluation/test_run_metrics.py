"""`metrics.json`: written and read in one place, byte for byte; that of version 0.1.0 reads as well."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from results import estimate, run_metrics
from version_0_1_0 import ARCHIVE

from medopt.core.errors import DataError
from medopt.core.records import Estimate, NotDefined
from medopt.evaluation.analysis_results import FamilyRobustness, ModelRobustness, RobustnessResult
from medopt.evaluation.gate_verdict import ShiftedCase
from medopt.evaluation.run_metrics import METRICS_FILE, RunMetrics


def written(folder: Path, metrics: RunMetrics) -> Path:
    metrics.write(folder / METRICS_FILE)
    return folder / METRICS_FILE


def test_what_is_written_is_read_and_written_again_byte_for_byte(tmp_path: Path) -> None:
    first = written(tmp_path, run_metrics())
    again = RunMetrics.read(first)
    assert again == run_metrics()
    again.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first.read_bytes()


def test_a_shift_that_nobody_would_see_is_no_case_to_look_at() -> None:
    seen, unseen = ShiftedCase(case_id="c", before=0.5, after=0.32), ShiftedCase(case_id="c", before=0.5, after=0.4951)
    assert seen.sentence.endswith("moves by 18 points (0.50 to 0.32): look at that case")
    assert unseen.sentence == "largest shift: no probability of a validation case moves by half a point"


def test_attributes_have_the_names_of_the_keys_and_hold_records(tmp_path: Path) -> None:
    metrics = RunMetrics.read(written(tmp_path, run_metrics()).parent)
    assert metrics.test.int8.auc == Estimate(0.875, 0.775, 0.925, 18)
    assert metrics.sites["hill"].int8.auc.value == 0.7 and metrics.test["float"] is metrics.test.float
    assert metrics.net_benefit.int8["yes"] == NotDefined("one class only")
    assert metrics.gate.figures.chosen.speedup == 3.0 and metrics.outcome == "released"
    assert metrics.served_ms.float == 9.0 and metrics.served_ms.int8 == 3.0
    assert metrics.calibration.int8.calibration.temperature == 1.25


def test_the_file_is_that_of_version_0_1_0_with_a_version_in_it(tmp_path: Path) -> None:
    values = json.loads(written(tmp_path, run_metrics()).read_text())
    assert values.pop("schema_version") == 1
    assert values["test"]["int8"]["auc"] == {"value": 0.875, "low": 0.775, "high": 0.925, "n": 18}  # no empty note
    assert values["operating_point"]["int8"] == {"threshold": 0.45, "rule": "youden", "note": "a note"}
    assert values["patients"]["int8"] == {"note": "every patient has one image"}
    assert values["selective"]["int8"] == {"note": "no cases"}
    assert values["gate"]["override"] is None and values["gate"]["figures"]["limits"]["max_decision_flips"] == 0.05
    assert "robustness" not in values and "domain" not in values
    (tmp_path / METRICS_FILE).write_text(json.dumps(values))  # as 0.1.0 wrote it
    assert RunMetrics.read(tmp_path) == run_metrics()


def test_the_run_of_version_0_1_0_is_read_and_written_unchanged(tmp_path: Path) -> None:
    with ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    (path,) = tmp_path.glob(f"runs/clinic/*/{METRICS_FILE}")
    before = path.read_text()
    metrics = RunMetrics.read(path.parent)
    metrics.write(path)
    after = json.loads(path.read_text())
    for limit in ("auc_bound", "flips_bound", "error_margin", "error_bound"):  # limits are written whole
        del after["gate"]["figures"]["limits"][limit]
    assert after == {"schema_version": 1} | json.loads(before)
    assert metrics.robustness is not None and metrics.explanations is not None and metrics.domain is not None
    for name in ("robustness", "explanations", "domain"):
        assert getattr(metrics, name).json_values() == json.loads((path.parent / f"{name}.json").read_text())


def test_analyses_come_from_their_own_files(tmp_path: Path) -> None:
    path = written(tmp_path, run_metrics())
    assert RunMetrics.read(path).robustness is None
    family = FamilyRobustness(auc=(estimate(0.8), estimate(0.6)), drop=estimate(0.2))
    model = ModelRobustness(clean=estimate(0.9), mean=estimate(0.7), drop=estimate(0.2), families={"noise": family})
    RobustnessResult(cases=12, float=model, int8=model).write(tmp_path / "robustness.json")
    metrics = RunMetrics.read(path)
    assert metrics.robustness is not None and metrics.robustness.int8.families["noise"].auc[1].value == 0.6
    assert "robustness" in metrics.for_release().json_values()
    assert "robustness" not in json.loads(written(tmp_path, metrics).read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": {"float": {}}}, r"metrics\.json cannot be read \(test\.float\.auc: Field required"),
        ({"surprise": 1}, r"metrics\.json cannot be read \(surprise: Extra inputs are not permitted"),
        ({"schema_version": 2}, r"metrics\.json cannot be read \(schema_version: Input should be 1"),
    ],
)
def test_another_file_is_refused_with_its_key(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = written(tmp_path, run_metrics())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        RunMetrics.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.json cannot be read \(No such file"):
        RunMetrics.read(tmp_path / METRICS_FILE)

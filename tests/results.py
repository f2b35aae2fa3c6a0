"""A run's figures made by hand, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medopt.config import Gate
from medopt.core.provenance import Machine
from medopt.core.records import Estimate, NotDefined, Override
from medopt.core.result import ByKind
from medopt.evaluation.gate_verdict import EngineFigures, GateFigures, GateRecord, ShiftedCase
from medopt.evaluation.model_verdict import ModelVerdict
from medopt.evaluation.run_metrics import CalibrationErrors, CalibrationResult, Int8Change, PatientResult, RunMetrics
from medopt.evaluation.subgroup_results import GroupDifference, SubgroupFigures, SubgroupResults, WorstGroup
from medopt.metrics.figures import METRICS, Figures
from medopt.metrics.net_benefit import DecisionCurve
from medopt.metrics.selective import CoverageRisk, DecidedShare, RiskCurve
from medopt.metrics.thresholds import OperatingPoint


def estimate(value: float, note: str = "") -> Estimate:
    return Estimate(value, value - 0.1, value + 0.05, 18, note)


def figures(value: float, **changed: Estimate) -> Figures:
    return replace(Figures(*(estimate(value) for _ in METRICS)), **changed)


def both(value: Any, other: Any = None) -> ByKind[Any]:
    return ByKind(float=value, int8=value if other is None else other)


def gate(passed: bool = True, override: Override | None = None, undecided: bool = False) -> GateRecord:
    engine = EngineFigures(
        auc_difference=estimate(-0.01),
        decision_flips=Estimate(0.0556, 0.01, 0.12, 18),
        probability_shift=estimate(0.02),
        largest_shift=0.2,
        latency_ms=3.0,
        float_ms=9.0,
        size_ratio=0.27,
        speedup=3.0,
        shifted=ShiftedCase(case_id="c0ffee", before=0.12, after=0.32),
    )
    judged_by = GateFigures(
        engine="openvino",
        engines_passed=("openvino",) if passed else (),
        engines_refused=(),
        auc_float=0.9,
        auc_int8=0.89,
        limits=Gate(),
        engines={"openvino": engine},
    )
    reasons = () if passed else ("the decision flips",)
    nearest = "5.6 % (1.0 to 12.0) of the decisions flip on 18 validation cases; allowed: 20 %" if passed else ""
    return GateRecord(
        passed=passed,
        reasons=reasons,
        figures=judged_by,
        undecided=undecided,
        nearest=nearest,
        in_float=("conv1",),
        override=override,
    )


def verdict(**changed: Any) -> ModelVerdict:
    chosen = {"no": 10, "yes": 8}
    parts: dict[str, Any] = {"reasons": (), "remarks": (), "chosen": both(chosen), "over_linear": estimate(0.2)}
    return ModelVerdict(**parts | changed)


def subgroups() -> SubgroupResults:
    difference = GroupDifference(auc=estimate(-0.2), sensitivity=estimate(0.0), specificity=estimate(0.0))
    women = SubgroupFigures(
        cases=9,
        patients=9,
        positives=4,
        auc=estimate(0.7),
        sensitivity=estimate(0.8),
        specificity=estimate(0.9),
        difference=difference,
    )
    few = SubgroupFigures(cases=2, patients=2, positives=1, note="2 patients, fewer than 10")
    worst = WorstGroup(variable="sex", group="F", auc=estimate(0.7), difference=estimate(-0.2))
    groups = {"sex": {"F": women, "M": few}}
    return SubgroupResults(variables=groups, smallest_group=10, worst=worst, looks=1, note="1 group was looked at")


def run_metrics(**changed: Any) -> RunMetrics:
    """A binary study's figures, with every part that may be missing once there and once not."""
    curve = DecisionCurve(0.4, estimate(0.2), None, (0.1, 0.2), (0.3, 0.2), (0.2, 0.1), (0.4, 0.3), (0.3, 0.2))
    band = DecidedShare(estimate(0.9), estimate(0.1), estimate(0.8), None)
    risk = CoverageRisk(estimate(0.05), band, RiskCurve((0.5, 1.0), (0.0, 0.1), (0.0, 0.0), (0.1, 0.2)))
    errors = CalibrationErrors(ece=0.02, ace=0.03)
    calibration = CalibrationResult(
        method="temperature", temperature=1.25, curves=(), note="", before=errors, after=errors
    )
    point = OperatingPoint(0.5, "youden", band=(0.4, 0.6))
    patients = PatientResult(aggregate="mean of the logits", operating_point=point, test=figures(0.8))
    parts: dict[str, Any] = {
        "schema_version": 1,
        "study": "clinic",
        "seed": 3,
        "mlflow_run_id": "f" * 32,
        "data_notes": (),
        "validation": both(figures(0.9)),
        "test": both(figures(0.9), figures(0.875)),
        "sites": {"hill": both(figures(0.8), figures(0.7))},
        "patients": both(patients, PatientResult(note="every patient has one image")),
        "calibration": both(calibration),
        "net_benefit": both({"yes": curve}, {"yes": NotDefined("one class only")}),
        "selective": both(risk, NotDefined("no cases")),
        "subgroups": both(subgroups()),
        "int8_on_test": Int8Change(auc_difference=Estimate(-0.025, -0.05, 0.01, 18), decision_flips=estimate(0.06)),
        "operating_point": both(point, OperatingPoint(0.45, "youden", "a note")),
        "engine": both("onnxruntime", "openvino"),
        "latency_ms": {"onnxruntime_float": 9.0, "openvino_int8": 3.0, "torch_float": 20.0},
        "size_bytes": both(4_000_000, 1_100_000),
        "confidence": 0.95,
        "gate": gate(),
        "verdict": verdict(),
        "machine": Machine("a processor", 2, "3.11.7", "Linux"),
        "packages": {"medopt": "0.1.0"},
    }
    return RunMetrics(**(parts | changed))

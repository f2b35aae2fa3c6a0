from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from medopt.compression.gate import Disagreement, GateMeasurement, disagreement, judge
from medopt.compression.quantize import quantize_int8
from medopt.config import Gate
from medopt.core.errors import DataError
from medopt.core.records import Estimate, Predictions
from medopt.evaluation.gate_verdict import GateVerdict
from medopt.evaluation.validation_fit import CrossFittedDecisions, parts_of, read_crossed
from medopt.inference.engines import open_engine, run_files
from medopt.metrics.bootstrap import paired_difference


def candidate(**changes: Any) -> GateMeasurement:
    apart = {name: changes.pop(name, value) for name, value in (("decision_flips", 0.01), ("probability_shift", 0.02))}
    told = [Estimate(value, None, None, 80, "none" if value is None else "") for value in apart.values()]
    good: dict[str, Any] = {
        "engine": "openvino",
        "auc_difference": Estimate(-0.002, -0.008, 0.004, 80),
        "disagreement": Disagreement(told[0], told[1], 0.1),
        "latency_ms": 2.0,
        "float_ms": 5.0,
        "size_ratio": 0.27,
    }
    return GateMeasurement(**good | changes)


def predictions(logits: Any, labels: Any = None, model: str = "float") -> Predictions:
    table = np.asarray(logits, np.float64).reshape(len(logits), -1)
    names = np.array([f"c{k:03d}" for k in range(len(table))])
    truth = np.asarray(labels if labels is not None else np.zeros(len(table)), np.int64)
    blank = np.full(len(table), "val")
    return Predictions(model, names, names, blank, blank, truth, table)


def test_a_good_model_passes_with_its_figures() -> None:
    verdict = judge([candidate()], Gate(), (0.91, 0.908))
    assert verdict.passed and verdict.reasons == ()
    figures = verdict.figures
    assert figures.engine == "openvino" and figures.engines_passed == ("openvino",)
    assert figures.chosen.speedup == 2.5 and figures.chosen.auc_difference.low == -0.008
    assert (figures.auc_float, figures.auc_int8) == (0.91, 0.908)
    text = json.dumps(verdict.json_values(), allow_nan=False)
    assert GateVerdict.model_validate_json(text) == verdict


def estimate(value: float | None, low: float | None = None) -> dict[str, Any]:
    return {"auc_difference": Estimate(value, low, 0.0, 80, "" if value is not None else "one class only")}


@pytest.mark.parametrize(
    ("changes", "limits", "reason"),
    [
        (estimate(-0.011), {}, "int8 loses 0.0110 AUC, more than 0.01"),
        (estimate(-0.002, -0.03), {"strict": True}, "int8 may lose 0.0300 AUC, more than 0.01"),
        (estimate(-0.002, None), {"strict": True}, "not defined on validation"),
        (estimate(None), {}, "the AUC difference is not defined on validation (one class only)"),
        (estimate(math.nan), {}, "loses nan AUC"),
        ({"decision_flips": 0.06}, {}, "6.0% of the decisions flip, more than 5.0%"),
        ({"decision_flips": math.nan}, {}, "of the decisions flip"),
        ({"decision_flips": None}, {}, "an unknown share of the decisions flip"),
        ({"probability_shift": 0.11}, {}, "probabilities move by 0.110 on average, more than 0.1"),
        ({"probability_shift": math.nan}, {}, "probabilities move by nan"),
        ({"size_ratio": 0.51}, {}, "the file has 51% of the float size, more than 50%"),
        ({"size_ratio": math.nan}, {}, "of the float size"),
        ({"latency_ms": 5.5}, {}, "not faster: 5.50 ms against 5.00 ms"),
        ({"latency_ms": 5.0}, {}, "not faster"),
        ({"float_ms": math.nan}, {}, "not faster"),
        ({"latency_ms": 3.0}, {"min_speedup": 2}, "(1.67x, wanted above 2x)"),
    ],
)
def test_each_fault_alone_is_refused_for_its_own_reason(
    changes: dict[str, Any], limits: dict[str, Any], reason: str
) -> None:
    verdict = judge([candidate(**changes)], Gate.model_validate(limits), (0.9, 0.9))
    assert not verdict.passed and len(verdict.reasons) == 1
    assert verdict.reasons[0].startswith("openvino: ") and reason in verdict.reasons[0]
    assert verdict.figures.engines_passed == ()


@pytest.mark.parametrize(
    "changes",
    [estimate(-0.01), {"decision_flips": 0.05}, {"probability_shift": 0.1}, {"size_ratio": 0.5}, {"latency_ms": 4.99}],
    ids=["auc", "flips", "shift", "size", "speed"],
)
def test_exactly_the_limit_passes(changes: dict[str, Any]) -> None:
    assert judge([candidate(**changes)], Gate(), (0.9, 0.9)).passed


def test_a_better_model_passes() -> None:
    assert judge([candidate(**estimate(0.03))], Gate(), (0.9, 0.93)).passed


def test_the_fastest_engine_that_passes_is_chosen() -> None:
    slow, fast = candidate(engine="onnxruntime", latency_ms=3.0), candidate(latency_ms=1.5)
    wrong = candidate(engine="third", latency_ms=0.5, decision_flips=0.4)
    verdict = judge([slow, wrong, fast], Gate(), (0.9, 0.9))
    assert verdict.passed and verdict.figures.engine == "openvino"
    assert verdict.figures.engines_passed == ("openvino", "onnxruntime")
    assert any("third: 40.0% of the decisions flip" in fault for fault in verdict.figures.engines_refused)


def test_where_none_passes_every_engine_says_why() -> None:
    first, second = (
        candidate(engine="onnxruntime", size_ratio=0.9),
        candidate(decision_flips=0.3, probability_shift=0.3),
    )
    verdict = judge([first, second], Gate(), (0.9, 0.9))
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["onnxruntime", "openvino", "openvino"]


def read(probability: Any, decision: Any = None, names: Any = None) -> CrossFittedDecisions:
    table = np.asarray(probability, np.float64).reshape(len(probability), -1)
    decided = (table[:, 0] >= 0.5) if decision is None else np.asarray(decision)
    cases = np.array(names if names is not None else [f"c{k:03d}" for k in range(len(table))])
    return CrossFittedDecisions(cases, np.arange(len(table)), table, decided)


def between(before: CrossFittedDecisions, after: CrossFittedDecisions) -> Disagreement:
    return disagreement(before, after, bootstrap=200, confidence=0.95, generator=np.random.default_rng(0))


def test_disagreement_counts_flips_and_changes_of_probability() -> None:
    before, after = [0.1, 0.45, 0.6, 0.95], [0.1, 0.55, 0.6, 0.75]
    found = between(read(before), read(after))
    assert found.decision_flips.value == 0.25 and found.decision_flips.n == 4
    assert found.probability_shift.value == pytest.approx(0.075) and found.largest_shift == pytest.approx(0.2)
    low, high = found.probability_shift.low, found.probability_shift.high
    assert low is not None and high is not None and 0 <= low < 0.075 < high <= 0.2


def test_classes_and_labels_disagree_in_their_own_way() -> None:
    classes = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]
    assert between(read(classes, [0, 1]), read(classes, [0, 2])).decision_flips.value == 0.5
    labels = np.array([[True, False, False]])
    assert between(read(classes[:1], labels), read(classes[:1], [[True, True, False]])).decision_flips.value == (
        pytest.approx(1 / 3)
    )


def test_predictions_in_another_order_are_not_compared() -> None:
    with pytest.raises(DataError, match="The two models predicted other cases, or in another order"):
        between(read([0.1, 0.2]), read([0.1, 0.2], names=["c001", "c000"]))


@pytest.fixture
def measured(tiny_models: SimpleNamespace) -> Callable[[Path], Any]:
    """The verdict on an int8 file, all but its latency measured on validation."""
    labels = [case.label[0] for case in tiny_models.val.cases]

    wanted = tiny_models.study.evaluation.model_copy(update={"operating_point": "fixed", "target": 0.5})
    how: dict[str, Any] = {"bootstrap": 200, "confidence": 0.95}

    def predict(path: Path, model: str) -> tuple[Predictions, CrossFittedDecisions]:
        table = predictions(run_files(open_engine("onnxruntime", path, 1), tiny_models.val.files), labels, model)
        return table, read_crossed(table, wanted, "binary", parts_of(table, "binary", 0))

    def verdict(path: Path) -> Any:
        (before, old), (after, new) = predict(tiny_models.float, "float"), predict(path, "int8")
        apart = disagreement(old, new, generator=np.random.default_rng(0), **how)
        difference = paired_difference(before, after, "binary", generator=np.random.default_rng(0), **how)
        size = path.stat().st_size / tiny_models.float.stat().st_size
        return judge([GateMeasurement("onnxruntime", difference, apart, 1.0, 2.0, size)], Gate(), (0.9, 0.9))

    return verdict


def test_a_real_int8_model_passes(measured: Callable[[Path], Any], tiny_models: SimpleNamespace) -> None:
    verdict = measured(tiny_models.int8)
    assert verdict.passed, verdict.reasons


@pytest.mark.parametrize(("layer", "factor"), [(0, 12), (5, -1), (-2, -8)])
def test_a_real_int8_model_with_one_damaged_layer_is_refused(
    measured: Callable[[Path], Any], tiny_models: SimpleNamespace, tmp_path: Path, layer: int, factor: float
) -> None:
    model = onnx.load(tiny_models.int8)
    values = {item.name: item for item in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and len(getattr(values.get(node.input[0]), "dims", ())) == 4
    ]
    scale = values[layers[layer].input[1]]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), scale.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    verdict = measured(tmp_path / "damaged.onnx")
    assert not verdict.passed
    assert any("decisions flip" in reason or "probabilities move" in reason for reason in verdict.reasons)


def test_a_real_int8_model_calibrated_on_noise_is_refused(
    measured: Callable[[Path], Any], tiny_models: SimpleNamespace, tmp_path: Path
) -> None:
    noise = list(np.random.default_rng(0).normal(0, 0.02, (16, 1, 16, 16)).astype(np.float32))
    quantize_int8(tiny_models.float, tmp_path / "noise.onnx", noise)
    verdict = measured(tmp_path / "noise.onnx")
    assert not verdict.passed
    assert any("decisions flip" in reason or "probabilities move" in reason for reason in verdict.reasons)

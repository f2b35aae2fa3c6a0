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
from medopt.config import Gate, Study
from medopt.core.errors import DataError
from medopt.core.records import Estimate, Predictions
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.gate_verdict import GateVerdict
from medopt.evaluation.validation_fit import CrossFittedDecisions, parts_of, read_crossed
from medopt.inference.engines import open_engine, run_files
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.pipeline.stages.judge import against_float


def around(value: float | None, width: float = 0.01) -> Estimate:
    """A figure of many cases, with a narrow interval."""
    if value is None or math.isnan(value):
        return Estimate(value, None, None, 80, "one class only")
    return Estimate(value, value - width, value + width, 80)


def candidate(**changes: Any) -> GateMeasurement:
    apart = {name: changes.pop(name, value) for name, value in (("decision_flips", 0.01), ("probability_shift", 0.02))}
    told = [one if isinstance(one, Estimate) else around(one) for one in apart.values()]
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
    assert verdict.passed and verdict.reasons == () and verdict.outcome == "passed"
    assert verdict.decided_by == "nearest to its limit: the file has 27% of the float size; allowed: 50%"
    figures = verdict.figures
    assert figures.engine == "openvino" and figures.engines_passed == ("openvino",)
    assert figures.chosen.speedup == 2.5 and figures.chosen.auc_difference.low == -0.008
    assert (figures.auc_float, figures.auc_int8) == (0.91, 0.908)
    text = json.dumps(verdict.json_values(), allow_nan=False)
    assert GateVerdict.model_validate_json(text) == verdict


def lost(value: float | None, width: float = 0.0005) -> dict[str, Any]:
    return {"auc_difference": around(value, width)}


@pytest.mark.parametrize(
    ("changes", "limits", "reason"),
    [
        (
            lost(-0.011),
            {},
            "the AUC changes by -0.0110 (-0.0115 to -0.0105) on 80 validation cases, more than a loss of 0.01",
        ),
        (
            {"decision_flips": 0.07},
            {},
            "7.0 % (6.0 to 8.0) of the decisions flip on 80 validation cases, more than",
        ),
        (
            {"probability_shift": 0.12},
            {},
            "probabilities move by 0.120 (0.110 to 0.130) on average",
        ),
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
    assert verdict.outcome == "refused" and len(verdict.reasons) == 1
    assert verdict.reasons[0].startswith("openvino: ") and reason in verdict.reasons[0]
    assert verdict.figures.engines_passed == ()


@pytest.mark.parametrize(
    ("changes", "limits", "reason"),
    [
        # The limit lies within the interval: both a loss that is allowed and one that is not.
        (lost(-0.011, 0.02), {}, "too few cases to tell whether the limit, a loss of 0.01, is kept"),
        ({"decision_flips": 0.06}, {}, "too few cases to tell whether the limit, 5 %, is kept"),
        ({"probability_shift": 0.105}, {}, "too few cases to tell whether the limit, 0.1, is kept"),
        # The limit is kept, and the interval reaches a loss that would be grave.
        (lost(-0.002, 0.05), {}, "too few cases to rule out a loss of 0.05 (limit: a loss of 0.01)"),
        ({"decision_flips": Estimate(0.03, 0.0, 0.13, 30)}, {}, "too few cases to rule out 10 % (limit: 5 %)"),
        (lost(-0.002, 0.03), {"strict": True}, "too few cases to rule out a loss of 0.01"),
        # No interval: nothing is shown.
        (lost(None), {}, "the AUC difference is not defined on 80 validation cases (one class only)"),
        (lost(math.nan), {}, "the AUC changes by +nan"),
        (
            lost(0.0) | {"auc_difference": Estimate(0.0, None, None, 9, "no interval")},
            {},
            "the AUC changes by +0.0000 on 9 validation cases (no interval): too few cases",
        ),
        ({"decision_flips": None}, {}, "the share of decisions that flip is not defined on 80 validation cases (one"),
        ({"probability_shift": None}, {}, "the mean shift of a probability is not defined on 80 validation cases (one"),
        ({"decision_flips": math.nan}, {}, "of the decisions flip"),
        ({"probability_shift": math.nan}, {}, "probabilities move by nan"),
    ],
)
def test_too_few_cases_are_no_proof_of_a_loss_and_none_of_its_absence(
    changes: dict[str, Any], limits: dict[str, Any], reason: str
) -> None:
    verdict = judge([candidate(**changes)], Gate.model_validate(limits), (0.9, 0.9))
    assert not verdict.passed and verdict.outcome == "cannot tell"
    assert reason in verdict.reasons[0] and verdict.reasons[0].startswith("openvino: ")
    assert "too few cases to" in verdict.reasons[0] and "cannot tell" not in verdict.reasons[0]  # the outcome says that
    assert verdict.decided_by == "; ".join(verdict.reasons) and verdict.figures.engines_passed == ()


def test_what_is_refused_is_not_called_undecided() -> None:
    both = candidate(decision_flips=0.06, size_ratio=0.9)
    verdict = judge([both], Gate(), (0.9, 0.9))
    assert verdict.outcome == "refused" and [one.split(": ")[1][:8] for one in verdict.reasons] == [
        "the file",
        "6.0 % (5",
    ]
    unsure = judge([both, candidate(engine="onnxruntime", decision_flips=0.06)], Gate(), (0.9, 0.9))
    assert unsure.outcome == "cannot tell"  # one engine is not refused


@pytest.mark.parametrize(
    "changes",
    [
        lost(-0.01),
        {"decision_flips": 0.05},
        {"size_ratio": 0.5},
        {"latency_ms": 4.99},
        {"probability_shift": Estimate(0.09, 0.08, 0.1, 80)},
        {"decision_flips": Estimate(0.05, 0.01, 0.1, 80)},
    ],
    ids=["auc", "flips", "size", "speed", "end of the shift", "end of the flips"],
)
def test_exactly_the_limit_passes(changes: dict[str, Any]) -> None:
    assert judge([candidate(**changes)], Gate(), (0.9, 0.9)).passed


def test_a_ranking_that_does_not_change_says_something_of_enough_patients() -> None:
    same = {"auc_difference": Estimate(0.0, None, None, 40, "no interval: no patient is ranked otherwise")}
    assert judge([candidate(**same, fewest=10)], Gate(), (0.9, 0.9)).passed
    assert judge([candidate(**same, fewest=9)], Gate(), (0.9, 0.9)).outcome == "cannot tell"


def test_without_an_interval_all_up_to_one_is_possible() -> None:
    """So it passes where a loss of everything is allowed, and just below that it cannot be told."""
    unsure: dict[str, Any] = {"probability_shift": Estimate(0.01, None, None, 9, "no interval")}
    for limit, outcome in ((1.0, "passed"), (0.99, "cannot tell")):
        found = judge([candidate(**unsure)], Gate(max_probability_shift=limit), (0.9, 0.9))
        assert found.outcome == outcome, limit


@pytest.mark.parametrize(("bound", "said"), [(0.1, "allowed: 5 %, and 10 % by the interval"), (0.05, "allowed: 5 %")])
def test_a_bound_is_named_where_it_is_wider_than_the_limit(bound: float, said: str) -> None:
    flips = Estimate(0.05, 0.01, 0.05, 80)
    found = judge([candidate(decision_flips=flips)], Gate(max_decision_flips=0.05, flips_bound=bound), (0.9, 0.9))
    assert found.passed and found.nearest.endswith(said)


def test_a_better_model_passes() -> None:
    assert judge([candidate(**lost(0.03))], Gate(), (0.9, 0.93)).passed


def test_the_fastest_engine_that_passes_is_chosen() -> None:
    slow, fast = candidate(engine="onnxruntime", latency_ms=3.0), candidate(latency_ms=1.5)
    wrong = candidate(engine="third", latency_ms=0.5, decision_flips=0.4)
    verdict = judge([slow, wrong, fast], Gate(), (0.9, 0.9))
    assert verdict.passed and verdict.figures.engine == "openvino"
    assert verdict.figures.engines_passed == ("openvino", "onnxruntime")
    assert any(
        "third: 40.0 % (39.0 to 41.0) of the decisions flip" in fault for fault in verdict.figures.engines_refused
    )


def test_where_none_passes_the_figures_are_those_of_the_fastest() -> None:
    slow, fast = (candidate(engine=name, latency_ms=ms, size_ratio=3.0) for name, ms in (("one", 2.0), ("two", 1.0)))
    for both in ((slow, fast), (fast, slow)):
        found = judge(both, Gate(), (0.9, 0.9))
        assert (found.passed, found.figures.engine, found.figures.engines_passed) == (False, "two", ())


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
    assert found.shifted is not None and found.shifted.sentence == (
        "largest shift: a probability of validation case c003 moves by 20 points (0.95 to 0.75): look at that case"
    )


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
def small_study(tiny_study: Callable[..., Study]) -> Study:
    return tiny_study(evaluation={"operating_point": "fixed", "target": 0.5, "calibration": "none", "bootstrap": 200})


def gate_of(study: Study, labels: list[int], before: list[float], after: list[float]) -> GateVerdict:
    tables = [predictions(logits, labels, model) for logits, model in ((before, "float"), (after, "int8"))]
    found = against_float(study, tables[0], tables[1], "openvino", (1.0, 2.0), (1, 4))
    return judge([found], study.compression.gate, (0.9, 0.9))


def test_one_pair_of_17_cases_in_another_order_is_no_proof(small_study: Study) -> None:
    """1/72 = 0.0139 is more than the limit, and one pair of cases."""
    labels = [0] * 9 + [1] * 8
    before = [-3.0 + 0.2 * place for place in range(9)] + [1.0 + 0.2 * place for place in range(8)]
    after = list(before)
    after[8], after[9] = 0.9, 0.8  # the highest of the ones without lies above the lowest of those with
    verdict = gate_of(small_study, labels, before, after)
    assert verdict.figures.chosen.auc_difference.value == pytest.approx(-1 / 72)
    assert verdict.outcome == "cannot tell"
    assert any(
        "the AUC changes by -0.0139" in one and "whether the limit, a loss of 0.01" in one for one in verdict.reasons
    )


def test_three_cases_that_agree_are_no_proof_either(small_study: Study) -> None:
    verdict = gate_of(small_study, [0, 1, 1], [-1.0, 1.0, 2.0], [-1.0, 1.0, 2.0])
    assert verdict.figures.chosen.auc_difference.value == 0 and verdict.figures.chosen.decision_flips.value == 0
    assert verdict.outcome == "cannot tell"
    assert any(
        "0.0 % (0.0 to 70.8) of the decisions flip on 3 validation cases: too few" in one for one in verdict.reasons
    )


def test_enough_cases_that_agree_pass(small_study: Study) -> None:
    logits = [-1.0 - 0.01 * place for place in range(60)] + [1.0 + 0.01 * place for place in range(60)]
    assert gate_of(small_study, [0] * 60 + [1] * 60, logits, logits).passed


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
        ranked = [CalibratedPredictions(one, "binary") for one in (before, after)]
        difference = area_difference(ranked[0], ranked[1], 0.95)[0]
        size = path.stat().st_size / tiny_models.float.stat().st_size
        return judge([GateMeasurement("onnxruntime", difference, apart, 1.0, 2.0, size, 30)], Gate(), (0.9, 0.9))

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

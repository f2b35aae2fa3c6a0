from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from medopt.compression.gate import Disagreement, GateMeasurement
from medopt.compression.pareto import Candidate, Rule, on_front, pick, reasons_against
from medopt.core.records import Estimate
from medopt.evaluation.compression_front import CompressionFront, Precision
from medopt.figures.pareto import front_figure


def estimate(value: float | None) -> Estimate:
    return Estimate(value, None, None, 80)


def option(
    name: str, auc: float, ms: float, *, lost: float = 0.0, precision: Precision = "int8", size: int = 100, **more: Any
) -> Candidate:
    apart = Disagreement(estimate(0.0), estimate(0.0), 0.0)
    one = GateMeasurement("openvino", estimate(-lost), apart, ms, 10.0, 0.3)
    return Candidate(name, precision, 0.0, 1000, size, estimate(auc), one, more.get("faults", ()), 40.0)


def test_the_front_holds_what_nothing_beats() -> None:
    options = [option("slow", 0.95, 9), option("fast", 0.9, 1), option("beaten", 0.89, 2), option("between", 0.93, 3)]
    assert [one.name for one in on_front(options)] == ["fast", "between", "slow"]


@given(st.lists(st.tuples(st.sampled_from([0.8, 0.85, 0.9]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=8))
def test_nothing_off_the_front_is_as_good_and_as_fast(pairs: list[tuple[float, float]]) -> None:
    options = [option(str(number), *pair) for number, pair in enumerate(pairs)]
    names = {one.name for one in on_front(options)}
    for number, (auc, ms) in enumerate(pairs):
        beaten = any(a >= auc and t <= ms and (a, t) != (auc, ms) for a, t in pairs)
        assert (str(number) in names) == (not beaten)


def test_the_fastest_within_the_margin_is_picked() -> None:
    options = [
        option("float", 0.95, 0.5, precision="float32"),
        option("whole", 0.95, 5, size=300),
        option("half", 0.947, 3, lost=0.003, size=150),
        option("third", 0.93, 2, lost=0.02, size=100),
        option("refused", 0.95, 1, faults=("9.0% of the decisions flip, more than 5.0%",), size=50),
    ]
    chosen = pick(options, Rule("fastest", 0.005))
    assert chosen is not None and chosen.name == "half"
    wider = pick(options, Rule("smallest", 0.03))
    assert wider is not None and wider.name == "third"
    assert pick(options[2:], Rule("fastest", 0.001)) is None
    against = {one.name: reasons_against(one, Rule("fastest", 0.005)) for one in options}
    assert against["float"] == ["a release is int8"] and against["whole"] == []
    assert against["third"] == ["the AUC falls by 0.0200, more than 0.005"]
    assert "of the decisions flip" in against["refused"][0]


def test_an_auc_that_is_not_defined_is_not_allowed() -> None:
    one = option("blind", 0.9, 1)
    blind = GateMeasurement("openvino", estimate(None), one.candidate.disagreement, 1.0, 10.0, 0.3)
    assert reasons_against(Candidate("blind", "int8", 0, 1, 1, estimate(0.9), blind, (), 40.0), Rule()) == [
        "the AUC difference is not defined: too few cases to rule out 0.005"
    ]
    said = "the AUC difference is not defined on 80 validation cases (one class only): too few cases to tell"
    judged = Candidate("blind", "int8", 0, 1, 1, estimate(0.9), blind, (said,), 40.0)
    assert reasons_against(judged, Rule()) == [said]  # once


def test_the_picture_is_drawn_with_and_without_intervals(tmp_path: Path) -> None:
    whole, int8 = option("whole, float32", 0.95, 9, precision="float32").record, option("whole, int8", 0.94, 3).record
    options = (whole.model_copy(update={"auc": Estimate(0.95, 0.9, 0.98, 80)}), int8)
    front = CompressionFront(
        rule="the fastest",
        confidence=0.95,
        validation_cases=80,
        options=options,
        front=("whole, int8",),
        chosen="whole, int8",
        against={},
        torch_ms=40.0,
    )
    assert CompressionFront.model_validate(front.json_values()) == front and front.choice == int8
    front_figure(front, tmp_path / "a.png", title="t", caption="c")
    blind = int8.model_copy(update={"auc": Estimate(None, None, None, 80, "one class only")})
    front = front.model_copy(update={"options": (options[0], blind), "front": (), "chosen": None})
    front_figure(front, tmp_path / "b.png", title="t", caption="c")
    assert (tmp_path / "a.png").stat().st_size > 10_000 and (tmp_path / "b.png").stat().st_size > 10_000

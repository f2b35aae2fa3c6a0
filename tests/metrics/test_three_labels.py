"""What holds for one label holds for each of three: decisions, confidence, thresholds, bands, what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medopt.core.errors import DataError
from medopt.core.records import Predictions, Task
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.thresholds import OperatingPoint, choose_threshold, operating_characteristics, with_band

POINT = OperatingPoint((0.5, 0.2, 0.9), "youden")


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_each_label_is_decided_by_its_own_threshold_which_itself_is_yes() -> None:
    below = np.nextafter([0.5, 0.2, 0.9], 0)
    table = np.array([[0.5, 0.2, 0.9], below, [0.6, 0.1, 0.89], [0.4, 0.3, 0.95]])
    assert POINT.decide(table).tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert POINT.thresholds == (0.5, 0.2, 0.9)
    for column in range(3):
        alone = OperatingPoint(POINT.thresholds[column], "youden")
        assert alone.decide(table[:, [column]]).tolist() == POINT.decide(table)[:, column].tolist()


def test_a_case_is_as_sure_as_its_label_nearest_to_the_threshold_on_either_side() -> None:
    table = np.array([[0.9, 0.19, 0.1], [0.3, 0.9, 0.91], [0.52, 0.9, 0.1]])
    nearest = [(0.19, 0.2), (0.91, 0.9), (0.52, 0.5)]
    expected = [abs(log_odds(probability) - log_odds(threshold)) for probability, threshold in nearest]
    assert POINT.confidence(table) == pytest.approx(expected)
    one = OperatingPoint(0.3, "fixed")
    assert one.confidence(np.array([[0.1], [0.6]])) == pytest.approx(
        [log_odds(0.3) - log_odds(0.1), log_odds(0.6) - log_odds(0.3)]
    )
    assert OperatingPoint(None, "argmax").confidence(table).tolist() == [0.9, 0.91, 0.9]
    assert np.isfinite(POINT.confidence(np.array([[0.0, 1.0, 0.0]]))).all()


@pytest.mark.parametrize("rule", ["youden", "sensitivity", "specificity", "cost", "fixed"])
@pytest.mark.parametrize("seed", range(3))
def test_three_thresholds_are_those_of_three_binary_studies(rule, seed) -> None:
    random = np.random.default_rng(seed)
    labels = (random.random((60, 3)) < [0.5, 0.3, 0.1]).astype(np.int64)
    table = np.clip(random.normal(0.3 + 0.2 * labels, 0.15), 0.01, 0.99).round(2)
    how = {"target": 0.8, "cost": 3.0, "prevalence": 0.2}
    found = choose_threshold(table, labels, rule, **how)
    alone = [choose_threshold(table[:, at], labels[:, at], rule, **how).threshold for at in range(3)]
    assert found.threshold == tuple(alone)
    assert found.rule == rule
    few = [at for at in range(3) if rule == "sensitivity" and labels[:, at].sum() < 4]  # .8 takes four
    assert found.note.count("no threshold can promise") == len(few) and (few or found.note == "")


def test_a_label_of_one_class_is_named_by_its_number() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    found = choose_threshold(np.array([[0.9, 0.2, 0.3], [0.2, 0.1, 0.6], [0.7, 0.6, 0.2]]), labels, "youden")
    assert found.threshold == (pytest.approx(0.45), 0.5, 0.5)
    said = "validation holds one class only, so the threshold is 0.5"
    assert found.note == f"label 1: {said}; label 2: {said}"


def test_the_first_cut_calls_all_and_the_last_none_by_hand() -> None:
    cuts, sensitivity, specificity = operating_characteristics(
        np.array([0.2, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    )
    assert cuts.tolist() == pytest.approx([0.1, 0.3, 0.6, 0.9])
    assert sensitivity.tolist() == [1, 1, 0.5, 0]
    assert specificity.tolist() == [0, 0.5, 1, 1]
    at_one, _, _ = operating_characteristics(np.array([0.5, 1.0]), np.array([False, True]))
    assert at_one[-1] > 1


def test_a_band_leaves_at_most_the_share_undecided_and_equals_together() -> None:
    point = OperatingPoint(0.5, "fixed")
    table = np.array([[0.55], [0.55], [0.6], [0.3], [0.75], [0.2], [0.85], [0.1], [0.95], [0.02]])
    assert with_band(point, table, 0) is point
    for share, undecided in ((0.2, 2), (0.29, 2), (0.3, 3), (0.5, 5), (0.9, 9)):
        found = with_band(point, table, share)
        assert int(found.undecided(table).sum()) == undecided, share
        assert found.note == ""
    nobody = with_band(OperatingPoint(0.5, "fixed", "first"), table, 0.1)  # the two least sure are equally sure
    assert nobody.band is None
    assert nobody.note == "first; no band: fewer than one of 10 validation cases may be left undecided"
    two = with_band(point, table, 0.2).band
    assert two is not None
    edge = (log_odds(0.55) + log_odds(0.6)) / 2  # midway, in logits, to the next
    assert two == pytest.approx((1 / (1 + math.exp(edge)), 1 / (1 + math.exp(-edge))))
    three = np.array([[0.4, 0.3, 0.3], [0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.9, 0.1, 0.0]])
    assert with_band(OperatingPoint(None, "argmax"), three, 0.25).band == pytest.approx((0, 0.45))
    assert with_band(OperatingPoint(None, "argmax"), three, 0.24).band is None


def test_a_band_holds_its_first_edge_and_not_its_second() -> None:
    point = OperatingPoint(0.5, "fixed", band=(0.4, 0.6))
    table = np.array([[0.4], [np.nextafter(0.4, 0)], [0.6], [np.nextafter(0.6, 0)]])
    assert point.undecided(table).tolist() == [True, False, False, True]
    assert OperatingPoint(0.5, "fixed").undecided(table).tolist() == [False] * 4
    classes = OperatingPoint(None, "argmax", band=(0.0, 0.5))
    assert classes.undecided(np.array([[0.49, 0.3, 0.21], [0.2, 0.3, 0.5]])).tolist() == [True, False]


def test_a_case_of_three_labels_is_wrong_where_any_is() -> None:
    names = np.array(["a", "b", "c", "d"])
    blank = np.array([""] * 4)
    labels = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]])
    logits = np.array([[2.0, -3, 3], [2, -1, 3], [-1, -3, -1], [1, 1, 2]])
    made = Predictions("float", names, np.array(["p", "q", "p", "r"]), blank, blank, labels, logits)
    found = CalibratedPredictions(made, "multilabel", operating_point=POINT)
    assert found.decided.tolist() == (np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 1, 0]]) == 1).tolist()
    assert found.wrong.tolist() == [False, True, False, True]
    assert found.patients.tolist() == [0, 1, 0, 2]
    assert found.where(np.array([False, True, False, True])).wrong.tolist() == [True, True]


def seen(labels: object, logits: list[list[float]], task: Task, patients: str = "pqrs") -> CalibratedPredictions:
    count, blank = len(logits), np.array([""] * len(logits))
    owner = np.array(list(patients)[:count])
    names = np.array([f"c{at}" for at in range(count)])
    made = Predictions("float", names, owner, blank, blank, np.array(labels), np.array(logits, float))
    return CalibratedPredictions(made, task)


def test_what_is_ranked_are_logits_and_of_classes_that_exclude_each_other_probabilities() -> None:
    """Two sure cases have the same sigmoid, and are ranked by their logits all the same."""
    assert seen([1, 0], [[50.0], [60.0]], "binary").score.tolist() == [[50.0], [60.0]]
    assert seen([[1, 0], [0, 1]], [[50.0, -1], [60, 1]], "multilabel").score.tolist() == [[50.0, -1.0], [60.0, 1.0]]
    softmax = seen([0, 2], [[math.log(2), 0, 0], [0, 0, math.log(6)]], "multiclass").score
    assert softmax == pytest.approx(np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]))


def test_without_an_operating_point_one_half_decides() -> None:
    logits = [[0.0], [float(np.nextafter(0, -1)) - 1e-9], [0.4], [-0.4]]  # the sigmoid of 0.4 is 0.6
    assert seen([0, 0, 0, 0], logits, "binary").decided.tolist() == [[True], [False], [True], [False]]


def test_of_an_output_only_the_cases_count_whose_truth_is_known() -> None:
    labels = [[1, 0, -1], [0, -1, -1], [1, 1, 0], [0, 0, 1]]
    whole = seen(labels, np.arange(12.0).reshape(4, 3).tolist(), "multilabel")
    assert whole.truth[0].tolist()[:2] == [1, 0] and np.isnan(whole.truth[0, 2])
    for output, rows, truth in ((0, [0, 1, 2, 3], [1, 0, 1, 0]), (1, [0, 2, 3], [0, 1, 0]), (2, [2, 3], [0, 1])):
        found, target = whole.of_output(output)
        assert found.predictions.case_id.tolist() == [f"c{at}" for at in rows]
        assert target.tolist() == [bool(one) for one in truth]
    assert whole.of_output(0)[0] is whole
    with pytest.raises(DataError):
        _ = whole.target
    known = whole.where(np.array([2, 3]))
    assert known.target.tolist() == [[True, True, False], [False, False, True]]


def test_a_part_keeps_what_was_computed_of_the_whole() -> None:
    """The patients' numbers among it, so that those of a part are those of the whole."""
    whole = seen([0, 1, 1, 0], [[1.0], [2.0], [-1.0], [0.5]], "binary", "pqqr")
    computed = {
        name: getattr(whole, name) for name in ("patients", "probability", "truth", "target", "decided", "wrong")
    }
    rows = np.array([3, 1])
    part = whole.where(rows)
    assert part.patients.tolist() == [2, 1]
    for name, values in computed.items():
        assert getattr(part, name).tolist() == values[rows].tolist()

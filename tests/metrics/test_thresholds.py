"""Operating points against an exhaustive search, with ties, neighbouring floats and one class."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.metrics import roc_curve

from medopt.metrics.thresholds import OperatingPoint, choose_threshold, operating_characteristics

RECORD = TypeAdapter(OperatingPoint)
CASES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, np.nextafter(0.5, 1)]), st.booleans()), min_size=2
)


def rates(probability, labels, threshold):
    called = probability >= threshold
    return called[labels == 1].mean(), (~called)[labels == 0].mean()


def columns(rows):
    probability, labels = (np.array(column) for column in zip(*rows, strict=True))
    return probability.astype(float), labels.astype(int)


@given(CASES, st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
@settings(max_examples=300, deadline=None)
def test_so_many_are_right_that_the_next_one_is_by_the_last_threshold_that_does_it(rows, target):
    probability, labels = columns(rows)
    if labels.min() == labels.max():
        return
    cuts, sensitivity, specificity = operating_characteristics(probability, labels == 1)
    assert (np.diff(cuts) > 0).all() and len(cuts) == len(np.unique(probability)) + 1
    expected = np.array([rates(probability, labels, cut) for cut in cuts])
    assert expected == pytest.approx(np.stack([sensitivity, specificity], axis=1))
    positives, negatives = int(labels.sum()), int((1 - labels).sum())
    found = choose_threshold(probability, labels, "sensitivity", target)
    least = min(1, math.ceil((positives + 1) * Fraction(str(target))) / positives)
    assert rates(probability, labels, found.threshold)[0] >= least
    assert all(rates(probability, labels, cut)[0] < least for cut in cuts[cuts > found.threshold])
    assert ("no threshold can promise" in found.note) == ((positives + 1) * Fraction(str(target)) > positives)
    found = choose_threshold(probability, labels, "specificity", target)
    least = min(1, math.ceil((negatives + 1) * Fraction(str(target))) / negatives)
    assert rates(probability, labels, found.threshold)[1] >= least
    assert all(rates(probability, labels, cut)[1] < least for cut in cuts[cuts < found.threshold])


def test_the_sensitivity_that_was_asked_for_is_kept_by_new_cases():
    """2000 studies of 20 positives and 60 negatives: .95 on average over draws, where the plain rule has .91."""
    kept, normal = [], NormalDist()
    for seed in range(2000):
        random = np.random.default_rng(seed)
        labels = np.repeat([1, 0], [20, 60])
        score = random.normal(size=80) + 1.5 * labels
        cut = choose_threshold(1 / (1 + np.exp(-score)), labels, "sensitivity", 0.95).threshold
        kept.append(1 - normal.cdf(math.log(cut / (1 - cut)) - 1.5))
    assert 0.945 <= np.mean(kept) <= 0.965


def test_too_few_cases_to_promise_anything_are_said():
    probability, labels = np.arange(1, 31) / 31, np.repeat([0, 1], [12, 18])
    found = choose_threshold(probability, labels, "sensitivity", 0.95)
    assert found.note.startswith(
        "no threshold can promise a sensitivity of 0.95 with 18 such validation cases (it takes"
    )
    assert "it takes 19" in found.note and rates(probability, labels, found.threshold) == (1, 1)
    assert choose_threshold(np.arange(1, 32) / 32, np.repeat([0, 1], [12, 19]), "sensitivity", 0.95).note == ""
    everything = choose_threshold(probability, labels, "specificity", 1.0)
    assert "no number is enough" in everything.note and rates(probability, labels, everything.threshold)[1] == 1


@given(CASES)
@settings(max_examples=200, deadline=None)
def test_youden_is_the_largest_that_scikit_learns_curve_knows(rows):
    probability, labels = columns(rows)
    if labels.min() == labels.max():
        return
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, probability, drop_intermediate=False)
    found = choose_threshold(probability, labels, "youden")
    assert sum(rates(probability, labels, found.threshold)) - 1 == pytest.approx(
        (true_positive_rate - false_positive_rate).max()
    )


def test_threshold_lies_midway_and_the_lower_of_equals_wins():
    probability, labels = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1])
    # 0.3 gives sensitivity 1 and specificity 1/2, 0.7 the other way round: the same index.
    assert choose_threshold(probability, labels, "youden").threshold == pytest.approx(0.3)
    assert choose_threshold(probability, labels, "sensitivity", 0.33).threshold == pytest.approx(0.7)
    assert choose_threshold(probability, labels, "sensitivity", 0.34).threshold == pytest.approx(0.3)
    assert choose_threshold(probability, labels, "specificity", 1.0).threshold == pytest.approx(0.7)


def test_equal_indices_stay_equal_although_their_rates_round():
    """Three positives and seven negatives: 1/3 + 6/7 and the like are not exact, whole numbers are."""
    probability = np.arange(1, 11) / 11
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 0, 1, 1])
    cuts, sensitivity, specificity = operating_characteristics(probability, labels == 1)
    index = [7 * round(3 * a) + 3 * round(7 * b) for a, b in zip(sensitivity, specificity, strict=True)]
    lowest = cuts[int(np.argmax(index))]
    assert choose_threshold(probability, labels, "youden").threshold == lowest


def test_order_of_the_cases_does_not_matter(drawn):
    predictions = drawn(100, decimals=1)
    probability = 1 / (1 + np.exp(-predictions.logits))
    shuffle = np.random.default_rng(0).permutation(100)
    one = choose_threshold(probability, predictions.labels, "youden")
    assert one == choose_threshold(probability[shuffle], predictions.labels[shuffle], "youden")


def test_one_class_gives_one_half_and_a_note():
    found = choose_threshold(np.array([[0.1], [0.9]]), np.array([1, 1]), "youden")
    assert found.threshold == 0.5 and "one class only" in found.note
    assert choose_threshold(np.array([[0.1], [0.9]]), np.array([1, 1]), "fixed", 0.3) == OperatingPoint(0.3, "fixed")


def test_multiclass_takes_the_most_probable():
    probability = np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    point = choose_threshold(probability, np.array([1, 2]), "youden")
    assert point == OperatingPoint(None, "argmax")
    assert point.decide(probability).tolist() == [1, 0]
    assert point.thresholds == ()


def test_multilabel_has_one_threshold_a_label():
    probability = np.array([[0.2, 0.7], [0.8, 0.9], [0.4, 0.1]])
    point = choose_threshold(probability, np.array([[0, 1], [1, 1], [0, 1]]), "youden")
    assert point.threshold == pytest.approx((0.6, 0.5))
    assert point.note.startswith("label 1: validation holds one class only")
    assert point.decide(probability).tolist() == [[0, 1], [1, 1], [0, 0]]
    assert RECORD.validate_json(RECORD.dump_json(point)) == point
    assert OperatingPoint(0.5, "fixed").thresholds == (0.5,)


def test_a_case_on_the_threshold_is_called():
    assert OperatingPoint(0.5, "fixed").decide(np.array([[0.5], [np.nextafter(0.5, 0)]])).tolist() == [1, 0]


@given(CASES, st.sampled_from([0.2, 1.0, 5.0]), st.sampled_from([None, 0.05, 0.5]))
@settings(max_examples=150, deadline=None)
def test_no_cut_costs_less_than_the_one_chosen_by_cost(rows, cost, prevalence):
    probability, labels = columns(rows)
    if labels.min() == labels.max():
        return
    share = labels.mean() if prevalence is None else prevalence

    def expected(cut):
        sensitivity, specificity = rates(probability, labels, cut)
        return cost * share * (1 - sensitivity) + (1 - share) * (1 - specificity)

    chosen = choose_threshold(probability, labels, "cost", cost=cost, prevalence=prevalence).threshold
    cuts, _, _ = operating_characteristics(probability, labels == 1)
    costs = [expected(cut) for cut in cuts]
    assert expected(chosen) == pytest.approx(min(costs))
    assert chosen <= cuts[np.flatnonzero(np.isclose(costs, min(costs)))[0]]


def test_a_dear_miss_lowers_the_threshold(drawn):
    predictions = drawn(300)
    probability = 1 / (1 + np.exp(-predictions.logits))
    cuts = [choose_threshold(probability, predictions.labels, "cost", cost=cost).threshold for cost in (0.1, 1, 10)]
    assert cuts[0] > cuts[1] > cuts[2]
    rare = choose_threshold(probability, predictions.labels, "cost", cost=10, prevalence=0.01).threshold
    assert rare > cuts[2]

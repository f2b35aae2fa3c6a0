"""Every metric equals scikit-learn's, with weights and ties; what is not defined is NaN and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from medopt.metrics.calibration import probabilities, targets
from medopt.metrics.weighted import (
    auc,
    average_precision,
    brier_statistic,
    decision_statistic,
    ranking_statistic,
    together,
)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=2, max_size=60),
    st.sampled_from([1.0, 0.1, 1e-12, 1e12]),
)
@settings(max_examples=300, deadline=None)
def test_ranking_equals_scikit_learn_on_tied_weighted_cases(rows, scale):
    score, positive, weight = (np.array(column) for column in zip(*rows, strict=True))
    weights = weight[None].astype(np.int64)
    found = ranking_statistic(scale * score[:, None].astype(float), positive[:, None])(weights)
    if weight[positive].sum() == 0 or weight[~positive].sum() == 0:
        assert np.isnan(found["auc"][0]) and np.isnan(found["average_precision"][0])
        return
    assert found["auc"][0] == pytest.approx(oracle.roc_auc_score(positive, score, sample_weight=weight), abs=1e-12)
    expected = oracle.average_precision_score(positive, score, sample_weight=weight)
    assert found["average_precision"][0] == pytest.approx(expected, abs=1e-12)


def test_every_row_of_weights_is_its_own_draw(drawn):
    """A draw that holds a case twice scores as a set that holds it twice."""
    predictions = drawn(90, decimals=1)
    weights = np.random.default_rng(1).integers(0, 4, size=(7, 90))
    score, target = predictions.logits, predictions.labels[:, None] == 1
    for row, area, precision in zip(
        weights, auc(score, target, weights), average_precision(score, target, weights), strict=True
    ):
        repeated = np.repeat(np.arange(90), row)
        assert area == pytest.approx(oracle.roc_auc_score(target[repeated], score[repeated]), abs=1e-12)
        assert precision == pytest.approx(oracle.average_precision_score(target[repeated], score[repeated]), abs=1e-12)


def test_one_dimension_will_do(drawn):
    predictions = drawn(50)
    positive = predictions.labels == 1
    assert auc(predictions.logits[:, 0], positive) == auc(predictions.logits, positive[:, None])


def test_auc_is_exact_for_a_million_cases_of_equal_score():
    target = np.arange(1_000_000) % 3 == 0
    assert auc(np.zeros(1_000_000), target)[0] == 0.5


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_decisions_and_brier_equal_scikit_learn(drawn, task):
    outputs = {"binary": 1, "multiclass": 4, "multilabel": 3}[task]
    predictions = drawn(150, outputs, seed=2, task=task)
    probability = probabilities(predictions.logits, 1.3, task)
    target = targets(predictions.labels, outputs, task)
    exclusive = task == "multiclass"
    decided = probability == probability.max(axis=1, keepdims=True) if exclusive else probability >= 0.5
    weights = np.random.default_rng(3).integers(0, 3, size=(2, 150))
    statistic = together(
        decision_statistic(decided, target, exclusive=exclusive),
        brier_statistic(probability, target, exclusive=exclusive),
    )
    found = statistic(weights)
    for draw, weight in enumerate(weights):
        columns = list(zip(target.T, decided.T, probability.T, strict=True))

        def mean(score, columns=columns, weight=weight, **options):
            return np.mean([score(truth, call, sample_weight=weight, **options) for truth, call, _ in columns])

        if exclusive:
            accuracy = oracle.accuracy_score(predictions.labels, decided.argmax(axis=1), sample_weight=weight)
            brier = oracle.brier_score_loss(predictions.labels, probability, sample_weight=weight)
        else:
            accuracy = mean(oracle.accuracy_score)
            brier = np.mean([oracle.brier_score_loss(truth, p, sample_weight=weight) for truth, _, p in columns])
        expected = {
            "accuracy": accuracy,
            "brier": brier,
            "sensitivity": mean(oracle.recall_score),
            "specificity": mean(oracle.recall_score, pos_label=0),
            "ppv": mean(oracle.precision_score),
            "npv": mean(oracle.precision_score, pos_label=0),
            "f1": mean(oracle.f1_score),
        }
        assert {name: values[draw] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_multiclass_auc_and_precision_are_macro_averages(drawn):
    predictions = drawn(200, 4, seed=4, task="multiclass")
    probability = probabilities(predictions.logits, 2.0, "multiclass")
    target = targets(predictions.labels, 4, "multiclass")
    expected = oracle.roc_auc_score(predictions.labels, probability, multi_class="ovr", average="macro")
    assert auc(probability, target)[0] == pytest.approx(expected, abs=1e-12)
    expected = oracle.average_precision_score(target, probability, average="macro")
    assert average_precision(probability, target)[0] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_a_draw_misses_leaves_only_its_own_figures_undefined():
    target, decided = np.array([[True], [True], [False]]), np.array([[True], [False], [False]])
    found = decision_statistic(decided, target, exclusive=False)(np.array([[1, 1, 0]]))
    assert found["sensitivity"][0] == 0.5 and found["accuracy"][0] == 0.5
    assert np.isnan(found["specificity"][0])

"""The shift of class weights and balanced sampling: known from the training cases, and taken back by calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from medopt.config import Evaluation, Study
from medopt.core.records import Case, Predictions
from medopt.data.samplers import balanced_chances
from medopt.evaluation.validation_fit import fit_on
from medopt.metrics.calibration import fit_calibration
from medopt.training.prior_shift import prior_shift


def cases_of(labels: Sequence[Sequence[int | None]]) -> list[Case]:
    return [Case(f"c{n}", f"p{n}", f"{n}.png", tuple(label), "train") for n, label in enumerate(labels)]


def rare(positive: int, negative: int) -> list[Case]:
    return cases_of([[1]] * positive + [[0]] * negative)


TASKS = {
    "binary": {"task": "binary", "labels": ["no", "yes"]},
    "multiclass": {"task": "multiclass", "labels": ["a", "b", "c"]},
    "multilabel": {"task": "multilabel", "labels": ["a", "b"]},
}


@pytest.mark.parametrize(
    ("training", "shift"),
    [
        ({}, ()),
        ({"class_weights": "balanced"}, (np.log(19),)),
        ({"sampling": "balanced"}, (np.log(19),)),
        ({"class_weights": "balanced", "sampling": "balanced"}, (2 * np.log(19),)),
        ({"class_weights": {"no": 2, "yes": 3}}, (np.log(1.5),)),
        ({"class_weights": {"no": 2, "yes": 2}}, ()),
        ({"class_weights": "balanced", "teacher": "t", "teacher_share": 0.5}, (np.log(5.5 / (0.5 + 0.25 / 0.95)),)),
    ],
)
def test_the_shift_of_a_binary_study_by_hand(
    tiny_study: Callable[..., Study], training: dict[str, Any], shift: tuple[float, ...]
) -> None:
    study = tiny_study(training=training, data=TASKS["binary"])
    assert prior_shift(study, rare(5, 95)) == pytest.approx(shift)


def test_the_shift_of_classes_and_of_labels_by_hand(tiny_study: Callable[..., Study]) -> None:
    classes = cases_of([[0]] * 60 + [[1]] * 30 + [[2]] * 10)
    expected = np.log(1 / np.array([6, 3, 1]))
    for training in ({"class_weights": "balanced"}, {"sampling": "balanced"}):
        found = prior_shift(tiny_study(training=training, data=TASKS["multiclass"]), classes)
        assert found == pytest.approx(expected - expected.mean())
    for few, drawn in (([[0]] * 8 + [[1]] * 4 + [[2]], [1, 2, 8]), ([[0]] * 8 + [[1]] * 4, [1, 2, 8])):
        found = prior_shift(tiny_study(training={"sampling": "balanced"}, data=TASKS["multiclass"]), cases_of(few))
        assert found == pytest.approx(np.log(drawn) - np.log(drawn).mean())  # none counts as one
    labels = cases_of([[1, 0]] * 10 + [[0, 1]] * 30 + [[0, 0]] * 60 + [[None, 0]] * 5)
    found = prior_shift(tiny_study(training={"class_weights": "balanced"}, data=TASKS["multilabel"]), labels)
    assert found == pytest.approx([np.log(9), np.log(75 / 30)])
    assert prior_shift(tiny_study(training={"class_weights": "balanced"}, data=TASKS["binary"]), rare(0, 9)) != ()


def test_the_shift_of_drawn_labels_is_that_of_their_shares(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(training={"sampling": "balanced"}, data=TASKS["multilabel"])
    labels = np.array([[1, 0]] * 10 + [[1, 1]] * 5 + [[0, 1]] * 30 + [[0, 0]] * 60)
    cases = cases_of(labels.tolist())
    drawn = (labels * balanced_chances(study, cases)[:, None]).sum(axis=0)
    plain = labels.mean(axis=0)
    expected = np.log(drawn / (1 - drawn)) - np.log(plain / (1 - plain))
    assert prior_shift(study, cases) == pytest.approx(expected)


def test_with_a_teacher_the_more_frequent_answer_keeps_its_weight(tiny_study: Callable[..., Study]) -> None:
    """Of the rarer one the drawn half of the target is moved, and the teacher's half is not."""
    training = {"sampling": "balanced", "teacher": "t", "teacher_share": 0.5}
    classes = cases_of([[0]] * 60 + [[1]] * 30 + [[2]] * 10)
    found = prior_shift(tiny_study(training=training, data=TASKS["multiclass"]), classes)
    expected = np.log([0.5 + 0.5, 0.5 * 2 + 0.5, 0.5 * 6 + 0.5])
    assert found == pytest.approx(expected - expected.mean())
    study = tiny_study(training=training, data=TASKS["multilabel"])
    labels = np.array([[1, 0]] * 70 + [[1, 1]] * 5 + [[0, 1]] * 10 + [[0, 0]] * 15)
    cases = cases_of(labels.tolist())
    drawn = (labels * balanced_chances(study, cases)[:, None]).sum(axis=0)
    times = drawn / (1 - drawn) / (labels.mean(axis=0) / (1 - labels.mean(axis=0)))
    assert times[0] < 1 < times[1]  # the first label is the more frequent answer, of the second its absence
    found = prior_shift(study, cases)
    assert found == pytest.approx([-np.log(0.5 / times[0] + 0.5), np.log(0.5 * times[1] + 0.5)])


def test_a_label_that_is_not_moved_stands_beside_one_that_is(tiny_study: Callable[..., Study]) -> None:
    labels = cases_of([[1, 0]] * 40 + [[1, 1]] * 10 + [[0, 0]] * 50)
    found = prior_shift(tiny_study(training={"class_weights": "balanced"}, data=TASKS["multilabel"]), labels)
    assert found == pytest.approx([0, np.log(9)])


def test_a_model_fitted_with_weights_is_shifted_by_it(tiny_study: Callable[..., Study]) -> None:
    """scikit-learn's logistic regression with balanced weights less the same without them."""
    draws = np.random.default_rng(0)
    truth = np.arange(20000) < 1000
    values = draws.normal(size=(20000, 1)) + 1.5 * truth[:, None]
    plain, weighted = (LogisticRegression(C=1e6, class_weight=how).fit(values, truth) for how in (None, "balanced"))
    (shift,) = prior_shift(tiny_study(training={"class_weights": "balanced"}, data=TASKS["binary"]), rare(1000, 19000))
    assert weighted.intercept_[0] - plain.intercept_[0] == pytest.approx(shift, abs=0.1)


def drawn(task: str, cases: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits of networks that learned with balanced weights, too sharp by a fifth, and the truth; rare findings."""
    draws = np.random.default_rng(seed)
    if task == "multiclass":
        labels = draws.choice(3, p=[0.9, 0.05, 0.05], size=cases)
        return 1.2 * (2 * draws.normal(size=(cases, 3)) + 4 * np.eye(3)[labels]), labels  # log odds as if equally often
    outputs = 1 if task == "binary" else 2
    labels = (draws.random((cases, outputs)) < 0.05).astype(np.int64)
    logits = 1.2 * 2 * (draws.normal(size=labels.shape) + 2 * labels - 1)
    return logits, labels[:, 0] if task == "binary" else labels


@pytest.mark.parametrize("method", ["logistic", "temperature"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_with_few_positives_the_mean_probability_is_near_the_prevalence(
    tiny_study: Callable[..., Study], task: str, method: str
) -> None:
    """A prevalence of .05, and validation with 60 cases: about three positives. One temperature said .29."""
    study = tiny_study(training={"class_weights": "balanced"}, data=TASKS[task])
    rows = drawn(task, 20000, 0)[1].reshape(20000, -1)
    shift = prior_shift(study, cases_of(rows.tolist()))
    fresh, _ = drawn(task, 4000, 1)
    means, before = [], []
    for seed in range(2, 42):
        logits, labels = drawn(task, 60, seed)
        for shifts, found in ((shift, means), ((), before)):
            calibration = fit_calibration(logits, labels, task, method, shift=shifts)
            found.append(calibration.probabilities(fresh, task)[:, -1].mean())
    assert np.mean(before) > 0.13
    assert np.mean(means) == pytest.approx(0.05, abs=0.02)
    assert np.quantile(means, 0.9) < 0.1


def test_what_is_said_of_it_and_what_stays(tiny_study: Callable[..., Study]) -> None:
    logits, labels = drawn("binary", 60, 3)
    shifted = fit_calibration(logits, labels, "binary", "logistic", shift=(np.log(19),))
    assert shifted.method == "logistic" and shifted.biases[0] == pytest.approx(-np.log(19) * shifted.slopes[0])
    assert "cases of a class, fewer than 10; the shift of class weights" in shifted.note
    many, truth = drawn("binary", 2000, 3)  # enough of both classes: the bias is fitted, whatever is known
    assert fit_calibration(many, truth, "binary", "logistic", shift=(1.0,)) == fit_calibration(
        many, truth, "binary", "logistic"
    )
    assert fit_calibration(logits, labels, "binary", "none", shift=(1.0,)).method == "none"
    several, truths = drawn("multilabel", 600, 3)
    truths[np.flatnonzero(truths[:, 1])[4:], 1] = 0
    mixed = fit_calibration(several, truths, "multilabel", "logistic", shift=(np.log(19), np.log(19)))
    assert mixed.biases[1] == pytest.approx(-np.log(19) * mixed.slopes[1]) and "known to give" in mixed.note


def test_cases_are_read_with_it() -> None:
    logits, labels = drawn("binary", 60, 3)
    names = np.array([f"c{n}" for n in range(60)])
    table = Predictions("float", names, names, np.full(60, "s"), np.full(60, "val"), labels, logits)
    read = fit_on(table, Evaluation(), "binary", shift=(np.log(19),))
    assert read.probability.mean() < 0.1 < fit_on(table, Evaluation(), "binary").probability.mean()

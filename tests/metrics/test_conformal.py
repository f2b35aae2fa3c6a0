"""Prediction sets by class: against crepes, against the promise in simulation, and for every kind of study."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crepes import ConformalClassifier
from crepes.extras import hinge
from pydantic import TypeAdapter
from scipy.special import expit, softmax

from medopt.config import Evaluation
from medopt.core.records import Predictions, Task
from medopt.evaluation.validation_fit import fit_on
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.conformal import class_table, class_truth, fit_sets
from medopt.metrics.selective import _band, coverage_risk
from medopt.metrics.thresholds import OperatingPoint, with_sets

WANTED = Evaluation.model_validate({"abstain": {"coverage": 0.9}})


def table(labels: np.ndarray, logits: np.ndarray, patients: np.ndarray | None = None) -> Predictions:
    count = len(labels)
    names = np.array([f"p{one:05d}" for one in (np.arange(count) if patients is None else patients)])
    blank = np.full(count, "val")
    return Predictions("int8", np.array([f"c{i}" for i in range(count)]), names, blank, blank, labels, logits)


def draw(task: Task, count: int, random: np.random.Generator) -> Predictions:
    if task == "multiclass":
        labels = random.choice(3, count, p=[0.6, 0.3, 0.1])
        return table(labels, random.normal(size=(count, 3)) + 1.5 * np.eye(3)[labels])
    outputs = 1 if task == "binary" else 2
    several = (random.random((count, outputs)) < 0.3).astype(np.int64)
    logits = random.normal(size=(count, outputs)) + 1.5 * several
    return table(several[:, 0] if task == "binary" else several, logits)


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 4)])
@pytest.mark.parametrize("coverage", [0.811, 0.953])  # crepes keeps a class whose p value is 1 - coverage itself
def test_the_sets_are_those_of_crepes(task: Task, outputs: int, coverage: float) -> None:
    random = np.random.default_rng(outputs)
    raw, labels = random.normal(size=(300, outputs)), random.integers(max(2, outputs), size=300)
    probability = softmax(raw, axis=1) if task == "multiclass" else expit(raw)
    truth = np.eye(outputs)[labels] if task == "multiclass" else labels[:, None].astype(float)
    sets = fit_sets(probability, truth, np.arange(300), coverage, task)
    several = task == "multiclass"
    classes, has = class_table(probability, several), class_truth(truth, several)
    own = has.argmax(axis=1)
    peer = ConformalClassifier().fit(hinge(classes, np.arange(classes.shape[1]), own), bins=own)
    # Cases of which no probability lies between a floor and the score it was rounded down from.
    fresh = softmax(random.normal(size=(2000, outputs)), axis=1) if several else expit(random.normal(size=(2000, 1)))
    asked = class_table(fresh, several)
    exact = [classes[:, k][classes[:, k] >= floor].min() for k, floor in enumerate(sets.floors)]
    clear = ~((asked >= np.array(sets.floors)) & (asked < np.array(exact))).any(axis=1)
    assert clear.mean() > 0.9
    expected = np.stack(
        [
            peer.predict_set(hinge(asked), bins=np.full(len(asked), k), confidence=coverage, smoothing=False)[:, k]
            for k in range(asked.shape[1])
        ],
        axis=1,
    )
    assert np.array_equal(sets.members(asked)[clear], expected[clear].astype(bool))
    assert np.array_equal(sets.members(classes), classes >= np.array(exact))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_every_class_keeps_its_promise_in_new_cases(task: Task) -> None:
    """150 studies with calibration and threshold fitted on the same cases: 90 % of each class on average, not fewer."""
    random, kept, left = np.random.default_rng(5), [], []
    for _ in range(150):
        fitted = fit_on(draw(task, 150, random), WANTED, task, enough=True)
        fresh = replace(fitted, predictions=draw(task, 300, random))
        band = _band(fresh, 0.95)
        kept.append([one.value for one in band.kept])
        left.append(1 - band.coverage.value)
    means = np.array(kept).mean(axis=0)
    errors = np.array(kept).std(axis=0) / np.sqrt(150)
    assert (means > 0.9 - 2.5 * errors).all(), means
    assert (means < 0.97).all(), means  # rules out more than it must not
    assert 0.02 < np.mean(left) < 0.6


def test_a_patient_with_many_images_counts_once_and_by_the_lowest() -> None:
    """200 studies of 60 patients with 1 to 9 images: all images of a new patient keep the promise."""
    random, kept = np.random.default_rng(1), []
    for _ in range(200):

        def images(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            owner = np.repeat(np.arange(patients), random.integers(1, 10, patients))
            label = (np.arange(patients) % 2)[owner]
            score = 1.5 * label + random.normal(size=patients)[owner] + 0.5 * random.normal(size=len(owner))
            return owner, label, expit(score[:, None])

        owner, label, probability = images(60)
        sets = fit_sets(probability, label[:, None].astype(float), owner, 0.9, "binary")
        assert sets.patients == (30, 30)
        owner, label, probability = images(200)
        members = sets.members(class_table(probability, False))
        out = ~members[np.arange(len(label)), 1 - label]
        kept.append(1 - np.mean([out[owner == one].any() for one in range(200)]))
    assert 0.89 < np.mean(kept) < 0.925


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_what_is_decided_is_the_only_member_of_its_set(task: Task) -> None:
    validation = draw(task, 200, np.random.default_rng(3))
    scored = fit_on(validation, WANTED, task)
    point, probability = scored.operating_point, scored.probability
    sets = point.sets
    assert sets is not None and sets.note == "" and point.note == ""
    members, decision = sets.members(class_table(probability, task == "multiclass")), point.decide(probability)
    undecided = point.undecided(probability)
    assert undecided.shape == decision.shape and 0 < undecided.mean() < 1
    if task == "multiclass":
        assert np.array_equal(~undecided, members[np.arange(200), decision] & (members.sum(axis=1) == 1))
    else:
        present, absent = (half.reshape(decision.shape) for half in np.split(members, 2, axis=1))
        assert np.array_equal(~undecided, np.where(decision == 1, present & ~absent, absent & ~present))
    record = TypeAdapter(OperatingPoint)
    assert record.validate_json(record.dump_json(point)) == point


@pytest.mark.parametrize(("positives", "is_enough"), [(18, False), (19, True)])
def test_too_few_cases_of_a_class_are_said_and_the_class_is_never_ruled_out(positives: int, is_enough: bool) -> None:
    labels = np.repeat([1, 0], [positives, 100])
    scored = fit_on(
        table(labels, np.random.default_rng(0).normal(size=(len(labels), 1)) + 6.0 * labels[:, None]),
        Evaluation.model_validate({"abstain": {"coverage": 0.95}}),
        "binary",
    )
    point = scored.operating_point
    answered_no = (scored.probability[:, 0] < point.band[0]).any()
    assert answered_no == is_enough
    said = (
        "no guarantee is possible for 1 of 2 classes: a coverage of 0.95 takes 19 validation patients, and there are 18"
    )
    assert point.note.startswith(said) != is_enough and (point.note == "") == is_enough
    assert point.sets.patients == (positives, 100)


def test_a_threshold_outside_the_sets_leaves_undecided_what_they_disagree_on() -> None:
    labels = np.repeat([1, 0], 50)
    probability = np.linspace(0.99, 0.01, 100)[:, None]
    sets = fit_sets(probability, labels[:, None].astype(float), np.arange(100), 0.9, "binary")
    far = with_sets(OperatingPoint(0.9, "cost"), sets)
    assert far.band[1] == 0.9
    assert not (far.decide(probability)[~far.undecided(probability)] != labels[~far.undecided(probability)]).any()


def test_unknown_labels_take_no_part() -> None:
    labels = np.array([[1, 0], [-1, 1], [0, -1], [1, 1]])
    truth = np.where(labels == -1, np.nan, labels)
    sets = fit_sets(np.full((4, 2), 0.5), truth, np.arange(4), 0.6, "multilabel")
    assert sets.patients == (2, 2, 1, 1)


def test_what_was_kept_of_each_class_is_what_was_not_answered_otherwise() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0])
    logits = np.array([[3.0], [0.0], [-3.0], [-3.0], [0.0], [3.0]])
    sets = fit_sets(np.array([[0.7], [0.3]]), np.array([[1.0], [0.0]]), np.arange(2), 0.5, "binary")
    point = OperatingPoint(0.5, "fixed", band=(0.3, 0.7), sets=sets)
    found = coverage_risk(
        CalibratedPredictions(table(labels, logits), "binary", operating_point=point),
        bootstrap=100, confidence=0.95, seed=0,
    ).band  # fmt: skip
    assert [round(one.value, 3) for one in found.kept] == [0.667, 0.667]
    assert (found.coverage.value, found.risk.value) == (pytest.approx(4 / 6), 0.5)

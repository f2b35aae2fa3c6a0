from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medopt.config import Evaluation
from medopt.core.errors import ConfigError
from medopt.core.records import Predictions
from medopt.evaluation.validation_fit import PARTS, fit_on, parts_of, read_crossed

WANTED = Evaluation()


def table(count: int, images: int = 1, labels: Any = None, logits: Any = None) -> Predictions:
    """`count` cases, so many images a patient, drawn scores that know something of the label."""
    random = np.random.default_rng(0)
    patients = np.array([f"p{index // images:03d}" for index in range(count)])
    truth = np.arange(count) // images % 2 if labels is None else np.asarray(labels)
    scores = truth.reshape(count, -1)[:, :1] + random.normal(0, 1, (count, 1)) if logits is None else logits
    blank = np.full(count, "val")
    return Predictions("float", np.array([f"c{i}" for i in range(count)]), patients, blank, blank, truth, scores)


def test_parts_hold_whole_patients_and_every_class() -> None:
    cases = table(48, images=2)
    parts = parts_of(cases, "binary", seed=1)
    assert set(parts.tolist()) == set(range(PARTS))
    assert all(len(set(parts[cases.patient_id == one].tolist())) == 1 for one in np.unique(cases.patient_id))
    assert all(set(cases.labels[parts == part].tolist()) == {0, 1} for part in range(PARTS))
    assert np.array_equal(parts, parts_of(cases, "binary", seed=1))


@pytest.mark.parametrize(("rare", "wanted"), [(3, 3), (2, 2), (1, 1)])
def test_a_rare_class_makes_fewer_parts(rare: int, wanted: int) -> None:
    assert len(np.unique(parts_of(table(20, labels=[1] * rare + [0] * (20 - rare)), "binary", 0))) == wanted


@pytest.mark.parametrize("rare", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_rare_is_in_each_of_the_parts(rare: int, seed: int) -> None:
    """A positive or a negative, a class, a label or its absence."""
    random = np.random.default_rng(seed)
    is_rare = random.permutation(np.arange(30) < rare)
    many = np.stack([is_rare, random.random(30) < 0.5, ~is_rare], axis=1).astype(np.int64)
    for task, labels in (
        ("binary", is_rare.astype(np.int64)),
        ("binary", (~is_rare).astype(np.int64)),
        ("multiclass", np.where(is_rare, 2, np.arange(30) % 2)),
        ("multiclass", np.where(is_rare, 0, 1 + np.arange(30) % 2)),
        ("multilabel", many),
    ):
        scores = np.zeros((30, {"binary": 1}.get(task, 3)))
        parts = parts_of(table(30, labels=labels, logits=scores), task, seed)  # type: ignore[arg-type]
        assert np.unique(parts).tolist() == list(range(rare))
        assert sorted(parts[is_rare].tolist()) == list(range(rare)), task


def test_every_case_is_read_with_what_the_others_gave() -> None:
    cases = table(40)
    parts = parts_of(cases, "binary", 0)
    read = read_crossed(cases, WANTED, "binary", parts)
    for part in range(PARTS):
        here = parts == part
        fitted = fit_on(cases.where(~here), WANTED, "binary")
        own = fitted.calibration.probabilities(cases.logits[here], "binary")
        assert read.probability[here] == pytest.approx(own)
        assert np.array_equal(read.decision[here], fitted.operating_point.decide(own))


def test_a_case_does_not_move_its_own_threshold() -> None:
    """Another score of one case changes no answer of its own but through that score, and answers of other parts."""
    cases = table(40)
    parts = parts_of(cases, "binary", 0)
    changed = cases.logits.copy()
    changed[3] = 50.0
    before, after = (read_crossed(table(40, logits=z), WANTED, "binary", parts) for z in (cases.logits, changed))
    same = (parts == parts[3]) & (np.arange(40) != 3)
    assert np.array_equal(before.probability[same], after.probability[same])
    assert not np.array_equal(before.probability[parts != parts[3]], after.probability[parts != parts[3]])


def test_one_patient_of_a_class_judges_what_it_was_fitted_to() -> None:
    cases = table(12, labels=[1] + [0] * 11)
    read = read_crossed(cases, WANTED, "binary", parts_of(cases, "binary", 0))
    assert np.array_equal(read.probability, fit_on(cases, WANTED, "binary").probability)


def test_several_labels_and_classes_are_read() -> None:
    random = np.random.default_rng(1)
    many = (random.random((60, 3)) < 0.4).astype(np.int64)
    labels = table(60, labels=many, logits=many + random.normal(0, 1, (60, 3)))
    read = read_crossed(labels, WANTED, "multilabel", parts_of(labels, "multilabel", 0))
    assert read.decision.shape == (60, 3)
    classes = table(60, labels=np.arange(60) % 3, logits=random.normal(0, 1, (60, 3)))
    assert read_crossed(classes, WANTED, "multiclass", parts_of(classes, "multiclass", 0)).decision.shape == (60,)


def test_isotonic_calibration_of_few_cases_is_refused_and_of_a_part_of_enough_is_not() -> None:
    """A part has fewer cases than the split, for which the number was asked."""
    wanted, cases = Evaluation(calibration="isotonic"), table(40)
    with pytest.raises(ConfigError, match="isotonic"):
        fit_on(cases, wanted, "binary")
    assert fit_on(cases, wanted, "binary", enough=True).calibration.method == "isotonic"
    assert read_crossed(cases, wanted, "binary", parts_of(cases, "binary", 0)).probability.shape == (40, 1)


def test_cases_are_read_with_the_shift_that_training_is_known_to_have() -> None:
    cases, parts, shift = table(40), parts_of(table(40), "binary", 0), (3.0,)
    read = read_crossed(cases, WANTED, "binary", parts, shift)
    plain = read_crossed(cases, WANTED, "binary", parts)
    for part in range(PARTS):
        fitted = fit_on(cases.where(parts != part), WANTED, "binary", enough=True, shift=shift)
        own = fitted.calibration.probabilities(cases.logits[parts == part], "binary")
        assert read.probability[parts == part] == pytest.approx(own)
    few = table(12, labels=[1] * 3 + [0] * 9)
    shifted, unshifted = (
        read_crossed(few, WANTED, "binary", parts_of(few, "binary", 0), one).probability for one in (shift, ())
    )
    assert shifted.mean() < unshifted.mean() and plain.probability.shape == read.probability.shape

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medopt.config import Evaluation
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

"""From images to patients."""

from dataclasses import replace

import numpy as np
import pytest

from medopt.core.errors import DataError
from medopt.core.records import UNKNOWN, Predictions
from medopt.evaluation.patients import by_patient


def table(labels, logits, owners=("b", "a", "b", "b"), sites=("n", "n", "n", "s")):
    count = len(owners)
    return Predictions(
        "float",
        np.array([f"case{row}" for row in range(count)]),
        np.array(owners),
        np.array(sites),
        np.full(count, "test"),
        np.array(labels),
        np.array(logits, dtype=float).reshape(count, -1),
        {"sex": np.array(["F", "M", "F", "F"])},
    )


def test_a_patient_has_the_finding_where_an_image_has_it():
    images = table([0, 0, 1, 0], [1, 2, 3, 8])
    mean, most = (by_patient(images, "binary", how) for how in ("mean", "max"))
    assert mean.patient_id.tolist() == mean.case_id.tolist() == ["a", "b"]
    assert mean.labels.tolist() == most.labels.tolist() == [0, 1]
    assert mean.logits.tolist() == [[2], [4]] and most.logits.tolist() == [[2], [8]]
    assert mean.site.tolist() == ["n", ""] and mean.subgroups["sex"].tolist() == ["M", "F"]


def test_labels_are_drawn_together_one_by_one():
    images = table([[0, 1], [0, 0], [1, 0], [0, 0]], [[1, 2], [3, 4], [5, 6], [0, 1]])
    found = by_patient(images, "multilabel", "mean")
    assert found.labels.tolist() == [[0, 0], [1, 1]] and found.logits.tolist() == [[3, 4], [2, 3]]


def test_several_answers_are_refused():
    images = table([0, 1, 2, 0], np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"1 of 2 patients have images of several classes.*--level image"):
        by_patient(images, "multiclass", "mean")
    torn = replace(table([0, 0, 1, 0], [1, 2, 3, 8]), split=np.array(["val", "val", "test", "test"]))
    with pytest.raises(DataError, match="of several splits"):
        by_patient(torn, "binary", "mean")


def test_nothing_stays_nothing(drawn):
    nothing = drawn(5).where(np.zeros(5, dtype=bool))
    assert len(by_patient(nothing, "binary", "max")) == 0


def test_a_label_that_is_not_known_of_one_image_is_not_known_unless_another_has_it():
    unknown = UNKNOWN
    images = table([[0, unknown], [unknown, 0], [1, 0], [unknown, 0]], np.zeros((4, 2)))
    assert by_patient(images, "multilabel", "mean").labels.tolist() == [[unknown, 0], [1, unknown]]

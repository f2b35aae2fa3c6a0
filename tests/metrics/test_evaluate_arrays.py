"""`medopt.metrics.evaluate`: arrays in, the figures of a run out."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn import metrics as oracle

import medopt.metrics
from medopt.core.errors import DataError
from medopt.metrics import estimates
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.estimates import all_figures
from medopt.metrics.figures import METRICS
from medopt.metrics.thresholds import OperatingPoint

FAST = {"bootstrap": 100, "seed": 3}


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 3), ("multilabel", 2)])
def test_arrays_give_the_figures_of_the_table(drawn, task, outputs):
    table = drawn(120, outputs, task=task, patients=70)
    found = medopt.metrics.evaluate(table.labels, table.logits, patients=table.patient_id, **FAST)
    threshold = {"binary": 0.5, "multiclass": None, "multilabel": (0.5, 0.5)}[task]
    point = OperatingPoint(threshold, "fixed")
    expected = all_figures(CalibratedPredictions(table, task, operating_point=point), confidence=0.95, **FAST)
    assert [found[name].value for name in METRICS] == [expected[name].value for name in METRICS]
    assert (found.auc.low, found.auc.high, found.f1.low) == (expected.auc.low, expected.auc.high, expected.f1.low)


def test_a_plain_list_of_a_binary_question_is_enough():
    labels, logits = [0, 0, 1, 0, 1, 1], [-2.0, -1.0, -0.5, 0.2, 1.5, 3.0]
    found = medopt.metrics.evaluate(labels, logits, **FAST)
    assert found.auc.value == pytest.approx(oracle.roc_auc_score(labels, logits)) and found.auc.n == 6
    strict = medopt.metrics.evaluate(labels, logits, threshold=0.9, **FAST)
    assert strict.sensitivity.value == pytest.approx(1 / 3) and strict.specificity.value == 1.0


def test_images_of_one_patient_widen_the_interval(drawn):
    table = drawn(200, patients=200)
    alone = medopt.metrics.evaluate(table.labels, table.logits, **FAST).auc
    twice = [np.repeat(column, 2, axis=0) for column in (table.labels, table.logits, np.arange(200))]
    shared = medopt.metrics.evaluate(*twice[:2], patients=twice[2], **FAST).auc
    apart = medopt.metrics.evaluate(*twice[:2], **FAST).auc
    assert shared.high - shared.low == pytest.approx(alone.high - alone.low, rel=0.02)
    assert apart.high - apart.low < 0.8 * (shared.high - shared.low)


@pytest.mark.parametrize(
    ("labels", "logits", "more", "message"),
    [
        ([0, 1], [0.1, 0.2, 0.3], {}, r"labels \(2,\), logits \(3,\) and patients \(3,\) do not belong together"),
        ([0, 1], [[0.1], [0.2]], {"patients": ["a"]}, r"patients \(1,\) do not belong together"),
        ([[0, 1], [1, 0]], [[0.1], [0.2]], {}, r"it takes labels \(2, 1\)"),
        ([0, 2], [0.1, 0.2], {}, "labels hold 2; a binary question"),
        (
            [0, 3],
            np.zeros((2, 3)),
            {},
            "labels hold 3; a multiclass question .* below 3",
        ),
        ([0, 1], [0.1, np.nan], {}, "1 of 2 cases have a logit that is not a finite number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, logits, more, message):
    with pytest.raises(DataError, match=message):
        medopt.metrics.evaluate(labels, logits, **more)


def test_the_example_holds():
    assert doctest.testmod(estimates).failed == 0 and doctest.testmod(estimates).attempted > 0

"""Paired differences against the papers' formulas, and what is no comparison."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from medopt.core.errors import DataError
from medopt.core.records import Predictions
from medopt.evaluation.comparison import COMPARED, area_difference, compare_models, on_shared_cases
from medopt.evaluation.paired_shares import paired_shares
from medopt.metrics.bootstrap import Resampling
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.estimates import all_figures
from medopt.metrics.proportions import wilson
from medopt.metrics.thresholds import OperatingPoint

HOW = Resampling(bootstrap=300, confidence=0.95, seed=4)
HALF = OperatingPoint(0.5, "fixed")


def pair(drawn, cases=200, noise=0.8, patients=None):
    table = drawn(cases, patients=patients)
    blurred = table.logits + np.random.default_rng(1).normal(scale=noise, size=table.logits.shape)
    return (
        CalibratedPredictions(table, "binary", operating_point=HALF),
        CalibratedPredictions(replace(table, model="other", logits=blurred), "binary", operating_point=HALF),
    )


def test_difference_of_areas_has_delongs_variance(drawn):
    first, second = pair(drawn)
    truth = first.target[:, 0]
    psi = [one.score[truth, 0][:, None] > one.score[~truth, 0] for one in (second, first)]
    above, below = (np.cov([one.mean(axis=axis) for one in psi]) for axis in (1, 0))
    covariance = above / truth.sum() + below / (~truth).sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found, p = area_difference(first, second, 0.95)
    assert found.value == pytest.approx(psi[0].mean() - psi[1].mean())
    # Student's t with the shares' own degrees of freedom is a little wider than DeLong's normal.
    assert 1 <= (found.high - found.low) / (2 * norm.ppf(0.975) * np.sqrt(variance)) < 1.1
    assert p == pytest.approx(2 * norm.sf(abs(found.value) / np.sqrt(variance)), abs=0.01)


def test_p_values_of_equal_models_are_spread_evenly(drawn):
    """Two models of equal worth on 150 patients with one or several images: p below 0.1 in a tenth of the studies."""
    below = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        table = drawn(150, seed=seed, patients=90)
        _, index = np.unique(table.patient_id, return_inverse=True)
        two = [
            replace(table, logits=table.logits + random.normal(size=(150, 1))[index] + random.normal(size=(150, 1)))
            for _ in range(2)
        ]
        below += (
            area_difference(CalibratedPredictions(two[0], "binary"), CalibratedPredictions(two[1], "binary"), 0.95)[1]
            < 0.1
        )
    assert 0.05 < below / 200 < 0.16


def test_a_comparison_is_the_difference_of_what_each_reaches(drawn):
    first, second = pair(drawn, patients=120)
    found = compare_models({"old": first, "new": second}, HOW)
    alone = [all_figures(one, bootstrap=100, confidence=0.95, seed=0) for one in (first, second)]
    assert (found.reference, found.cases, found.runs[0].name) == ("old", 200, "new")
    for name in COMPARED:
        told = found.runs[0].figures.by_name()[name]
        assert (told.reference, told.value) == pytest.approx([one[name].value for one in alone])
        assert told.difference.value == pytest.approx(told.value - told.reference)
        assert told.difference.low < told.difference.value < told.difference.high
        assert 0 < told.p <= 1
        apart = told.difference.low > 0 or told.difference.high < 0
        assert apart == (told.p < 0.05) or abs(told.p - 0.05) < 0.02
    assert list(found.runs[0].sites) == ["north", "south"]
    assert sum(site.cases for site in found.runs[0].sites.values()) == 200
    json.dumps(found.json_values(), allow_nan=False)


def test_a_model_against_itself_differs_by_nothing(drawn):
    first, _ = pair(drawn)
    told = compare_models({"a": first, "b": first}, HOW).runs[0].figures
    assert told.auc.difference.value == 0 and told.auc.p is None
    assert "no patient is ranked otherwise" in told.auc.difference.note
    assert told.brier.difference.value == 0 and told.brier.p is None


def test_unshared_cases_are_refused_or_left_out(drawn):
    first, second = pair(drawn)
    fewer = second.where(np.arange(200) >= 50)
    with pytest.raises(DataError, match=r"a 200, b 150, and 150 are shared by all.*--shared"):
        on_shared_cases({"a": first, "b": fewer})
    found = on_shared_cases({"a": first.where(np.random.default_rng(0).permutation(200)), "b": fewer}, shared=True)
    assert [len(one.predictions) for one in found.values()] == [150, 150]
    assert np.array_equal(found["a"].predictions.case_id, found["b"].predictions.case_id)
    none = second.where(np.arange(200) < 0)
    with pytest.raises(DataError, match="share no case"):
        on_shared_cases({"a": first, "b": none}, shared=True)


def test_other_labels_or_patients_of_shared_cases_are_refused(drawn):
    first, second = pair(drawn)
    table = second.predictions
    flipped = replace(table, labels=np.where(np.arange(200) < 3, 1 - table.labels, table.labels))
    with pytest.raises(DataError, match="a and b give 3 of 200 shared cases other labels") as caught:
        on_shared_cases({"a": first, "b": replace(second, predictions=flipped)}, shared=True)
    assert "case0" not in str(caught.value)
    renamed = replace(table, patient_id=np.char.add(table.patient_id, "x"))
    with pytest.raises(DataError, match="200 of 200 shared cases other patients"):
        on_shared_cases({"a": first, "b": replace(second, predictions=renamed)})


def decided(right: np.ndarray, labels: np.ndarray, patients: np.ndarray | None = None) -> CalibratedPredictions:
    """A model that is right about these cases."""
    count = len(labels)
    owner = np.arange(count) if patients is None else patients
    logits = np.where(right == (labels == 1), 2.0, -2.0)[:, None]
    blank = np.full(count, "test")
    names = np.array([f"c{index:04d}" for index in range(count)])
    table = Predictions("m", names, np.array([f"p{one:04d}" for one in owner]), blank, blank, labels, logits)
    return CalibratedPredictions(table, "binary", operating_point=HALF)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (25, 1, 3, 21), (20, 6, 9, 15), (10, 12, 11, 3)])
def test_newcombes_paired_interval(counts: tuple[int, int, int, int]) -> None:
    """Method 10, written out from the four counts; the first is the example of the paper (0.0569 to 0.3404)."""
    a, b, c, d = counts
    cases = sum(counts)
    first, second = (np.repeat(each, counts) for each in ([True, True, False, False], [True, False, True, False]))
    labels = np.ones(cases, np.int64)
    found, p = paired_shares(decided(second, labels), decided(first, labels), 0.95)["sensitivity"]
    product = a * d - b * c
    product = product if product < 0 else max(0, product - cases / 2)
    phi = product / np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    (l1, u1), (l2, u2) = (wilson(share, cases, 0.95) for share in ((a + b) / cases, (a + c) / cases))
    down, up = (a + b) / cases - l1, u1 - (a + b) / cases
    less, more = (a + c) / cases - l2, u2 - (a + c) / cases
    value = (b - c) / cases
    low = value - np.sqrt(down**2 - 2 * phi * down * more + more**2)
    high = value + np.sqrt(less**2 - 2 * phi * less * up + up**2)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high))
    if counts == (36, 12, 2, 0):
        assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))
    assert (p < 0.05) == (low > 0 or high < 0)
    again = paired_shares(decided(second, labels), decided(first, labels), 1 - p)["sensitivity"][0]
    assert min(abs(again.low), abs(again.high)) < 1e-4


@pytest.mark.parametrize(("patients", "images"), [(15, 1), (40, 1), (25, 4)])
def test_false_alarms_of_shares_are_as_rare_as_promised(patients: int, images: int) -> None:
    """Two models of equal sensitivity .9 that share half of their errors; at most 1 of 20 comparisons cries wolf."""
    random, alarms, rounds = np.random.default_rng(patients), 0, 150
    owner = np.repeat(np.arange(patients), images)
    labels = np.ones(len(owner), np.int64)
    for _ in range(rounds):
        common, own = random.normal(size=patients), random.normal(size=(2, patients))
        score = (common + own)[:, owner] + 0.7 * random.normal(size=(2, len(owner)))
        models = [decided(one > -1.28 * np.sqrt(2.49), labels, owner) for one in score]
        found, _ = paired_shares(models[0], models[1], 0.95)["sensitivity"]
        alarms += found.low > 0 or found.high < 0
    assert alarms / rounds < 0.08


def test_the_mean_over_outputs_varies_as_its_outputs_do_together(drawn) -> None:
    """Three classes against the spread of the difference over new draws of the same study."""
    told, values = [], []
    for seed in range(60):
        table = drawn(150, 3, seed=seed, task="multiclass")
        noise = np.random.default_rng(seed).normal(scale=0.8, size=(2, *table.logits.shape))
        two = [CalibratedPredictions(replace(table, logits=table.logits + one), "multiclass") for one in noise]
        two = [replace(one, operating_point=OperatingPoint(None, "argmax")) for one in two]
        found, _ = paired_shares(two[0], two[1], 0.95)["sensitivity"]
        told.append((found.high - found.low) / (2 * norm.ppf(0.975)))
        values.append(found.value)
    assert 0.9 < np.mean(told) / np.std(values) < 1.3

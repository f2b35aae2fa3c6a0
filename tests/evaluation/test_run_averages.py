"""The mean of several members, and out-of-fold predictions, against what can be computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medopt.core.errors import DataError
from medopt.core.records import Predictions
from medopt.evaluation.run_averages import mean_figures, out_of_fold, pooled_figures
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.thresholds import OperatingPoint

OPTIONS = {"bootstrap": 400, "confidence": 0.95, "seed": 0}


def table(seed: int, count: int = 80, strength: float = 1.0, split: str = "test") -> Predictions:
    """The same cases for every seed, with logits of their own; two cases a patient."""
    labels = np.random.default_rng(99).integers(0, 2, count)
    logits = strength * labels + np.random.default_rng(seed).normal(0, 1, count)
    names = np.array([f"case{index:03d}" for index in range(count)])
    return Predictions(
        "float",
        names,
        np.array([f"p{index // 2}" for index in range(count)]),
        np.full(count, "site"),
        np.full(count, split),
        labels.astype(np.int64),
        logits[:, None],
    )


def scored(seed: int) -> CalibratedPredictions:
    return CalibratedPredictions(table(seed), "binary", Calibration(), OperatingPoint(0.6, "youden"))


def test_mean_is_the_mean_and_each_value_is_the_members_own() -> None:
    members = [scored(seed) for seed in range(3)]
    found = mean_figures(members, **OPTIONS)["auc"]  # type: ignore[arg-type]
    expected = [roc_auc_score(one.predictions.labels, one.predictions.logits[:, 0]) for one in members]
    assert found.values == pytest.approx(expected)
    assert found.mean.value == pytest.approx(np.mean(expected))
    assert found.sd == pytest.approx(np.std(expected, ddof=1))
    assert (found.least, found.most) == (pytest.approx(min(expected)), pytest.approx(max(expected)))


def test_interval_of_the_mean_of_equal_members_is_that_of_one() -> None:
    """Averaging copies tells nothing new: the same patients are drawn for all of them."""
    one = mean_figures([scored(0)], **OPTIONS)["auc"].mean  # type: ignore[arg-type]
    three = mean_figures([scored(0)] * 3, **OPTIONS)["auc"].mean  # type: ignore[arg-type]
    assert (three.low, three.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_order_of_rows_does_not_matter() -> None:
    mixed = np.random.default_rng(5).permutation(80)
    other = replace(scored(1), predictions=table(1).where(mixed))
    assert mean_figures([scored(0), other], **OPTIONS) == mean_figures([scored(0), scored(1)], **OPTIONS)  # type: ignore[arg-type]


def test_members_of_other_cases_are_refused() -> None:
    other = replace(scored(1), predictions=table(1).where(np.arange(70)))
    with pytest.raises(DataError, match=r"did not score the same cases \(80 and 70"):
        mean_figures([scored(0), other], **OPTIONS)  # type: ignore[arg-type]


def test_figure_that_no_member_defines_is_none() -> None:
    one = replace(scored(0), predictions=replace(table(0), labels=np.zeros(80, np.int64)))
    found = mean_figures([one, one], **OPTIONS)["auc"]  # type: ignore[arg-type]
    assert found.values == (None, None)
    assert (found.mean.value, found.sd, found.least) == (None, None, None)


def test_out_of_fold_is_calibrated_and_averaged_over_seeds() -> None:
    first, second = table(0).where(np.arange(40)), table(0).where(np.arange(40, 80))
    again, last = table(1).where(np.arange(30)), table(1).where(np.arange(30, 80))
    fits = [Calibration("temperature", heat) for heat in (2.0, 0.5, 1.0, 1.0)]
    found = out_of_fold([second, first, again, last], fits, "binary")
    assert found.case_id.tolist() == table(0).case_id.tolist()
    heat = np.where(np.arange(80) < 40, 0.5, 2.0)
    expected = (table(0).logits[:, 0] / heat + table(1).logits[:, 0]) / 2
    assert found.logits[:, 0] == pytest.approx(expected)
    assert found.labels.tolist() == table(0).labels.tolist()
    figures = pooled_figures(found, "binary", **OPTIONS)  # type: ignore[arg-type]
    assert figures.auc.value == pytest.approx(roc_auc_score(found.labels, expected))
    assert figures.auc.low is not None
    assert figures.average_precision.value == pytest.approx(average_precision_score(found.labels, expected))

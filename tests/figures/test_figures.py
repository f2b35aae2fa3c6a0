"""Every picture is a whole PNG with both models in it, for every task and for degenerate sets."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from PIL import Image

from medopt.config import Evaluation
from medopt.core.records import EpochRecord
from medopt.evaluation.comparison import compare_models
from medopt.evaluation.evaluate import evaluate_model
from medopt.figures.comparison import comparison_figure
from medopt.figures.decisions import (
    coverage_risk_figure,
    decision_curve_figure,
    precision_recall_figure,
    subgroup_figure,
)
from medopt.figures.performance import (
    COLOURS,
    confusion_figure,
    learning_curves,
    reliability_figure,
    roc_figure,
)
from medopt.metrics.bootstrap import Resampling
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.thresholds import choose_threshold

SETTINGS = {"bootstrap": 100, "confidence": 0.95, "seed": 0}
NAMES = ["normal", "benign", "malignant", "other"]


def models(drawn, task, cases=90, change=lambda table: table):
    outputs = {"binary": 1, "multiclass": 4, "multilabel": 4}[task]
    table = change(drawn(cases, outputs, task=task))
    noisy = table.logits + np.random.default_rng(1).normal(scale=0.4, size=table.logits.shape)
    both = [CalibratedPredictions(table, task), CalibratedPredictions(replace(table, model="int8", logits=noisy), task)]
    return [replace(one, operating_point=choose_threshold(one.probability, table.labels, "youden")) for one in both]


def pixels(path):
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def holds(picture, colour, at_least=150):
    wanted = 255 * np.array(to_rgb(colour))
    return int((np.abs(picture - wanted).max(axis=2) <= 2).sum()) >= at_least


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_roc_and_reliability_show_both_models(drawn, tmp_path, task):
    labels = NAMES[:2] if task == "binary" else NAMES
    both = models(drawn, task)
    roc_figure(both, labels, tmp_path / "roc.png", **SETTINGS)
    reliability_figure(both, labels, tmp_path / "reliability.png")
    for name in ("roc", "reliability"):
        picture = pixels(tmp_path / f"{name}.png")
        assert holds(picture, COLOURS[0]) and holds(picture, COLOURS[1])
        assert picture.shape[1] == pytest.approx(690 if task == "binary" else 1380, abs=2)
    roc_figure(both[:1], labels, tmp_path / "one.png", **SETTINGS)
    assert not holds(pixels(tmp_path / "one.png"), COLOURS[1], at_least=1)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_confusion_shows_each_models_tables(drawn, tmp_path, task):
    labels = NAMES[:2] if task == "binary" else NAMES
    both = models(drawn, task)
    confusion_figure(both, labels, tmp_path / "two.png")
    confusion_figure(both[:1], labels, tmp_path / "one.png")
    two, one = pixels(tmp_path / "two.png"), pixels(tmp_path / "one.png")
    assert two.shape[0] * two.shape[1] > 1.8 * one.shape[0] * one.shape[1]
    assert len(np.unique(two @ [65536, 256, 1])) > 50


def test_degenerate_sets_are_drawn(drawn, tmp_path):
    one_class = models(drawn, "binary", change=lambda table: replace(table, labels=np.zeros(90, dtype=np.int64)))
    few = models(drawn, "binary", cases=3)
    for index, both in enumerate((one_class, few)):
        roc_figure(both, NAMES[:2], tmp_path / f"{index}a.png", **SETTINGS)
        reliability_figure(both, NAMES[:2], tmp_path / f"{index}b.png")
        confusion_figure(both, NAMES[:2], tmp_path / f"{index}c.png")
    assert len([pixels(path) for path in tmp_path.glob("*.png")]) == 6


def history(epochs, metric=0.8):
    return [
        EpochRecord(e, 1 / e, 1.2 / e, metric + 0.01 * e, 1e-3 / e, 100.0 + e, 3.0, 0.1) for e in range(1, epochs + 1)
    ]


def test_learning_curves_of_many_one_and_undefined_epochs(tmp_path):
    learning_curves(history(30), tmp_path / "many.png")
    learning_curves(history(1), tmp_path / "one.png", metric="loss")
    learning_curves(history(3, metric=float("nan")), tmp_path / "undefined.png")
    many = pixels(tmp_path / "many.png")
    assert holds(many, COLOURS[0]) and holds(many, COLOURS[1])
    assert pixels(tmp_path / "one.png").shape == pixels(tmp_path / "undefined.png").shape == many.shape


def test_nothing_global_is_left_and_nothing_half_written(drawn, tmp_path):
    before = dict(pyplot.rcParams)
    learning_curves(history(3), tmp_path / "curves.png")
    assert pyplot.get_fignums() == [] and dict(pyplot.rcParams) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["curves.png", "curves.svg"]


@pytest.mark.parametrize(("task", "cases"), [("binary", 90), ("multiclass", 90), ("binary", 3)])
def test_decisions_and_subgroups_are_drawn_from_the_results(drawn, tmp_path, task, cases):
    labels, wanted = NAMES[:2] if task == "binary" else NAMES, Evaluation(bootstrap=100)
    both = models(drawn, task, cases)
    results = {one.predictions.model: evaluate_model(one, labels, wanted, 0) for one in both}
    precision_recall_figure(both, labels, tmp_path / "a.png")
    decision_curve_figure({name: one.net_benefit for name, one in results.items()}, tmp_path / "b.png", confidence=0.95)
    coverage_risk_figure({name: one.selective for name, one in results.items()}, tmp_path / "c.png", confidence=0.95)
    int8 = results["int8"]
    subgroup_figure(int8.subgroups, int8.figures, tmp_path / "d.png", confidence=0.95)
    for name in "abc":  # both models, however few cases there are
        picture = pixels(tmp_path / f"{name}.png")
        assert holds(picture, COLOURS[0], at_least=50) and holds(picture, COLOURS[1], at_least=50), name
    # Three cases make no group that may be judged, so that no interval is drawn.
    assert holds(pixels(tmp_path / "d.png"), COLOURS[0], at_least=150 if cases > 3 else 1) is (cases > 3)


def test_reliability_is_drawn_before_and_after(drawn, tmp_path):
    both = models(drawn, "binary")
    reliability_figure(both, NAMES[:2], tmp_path / "one.png")
    cooled = [replace(one, calibration=Calibration("temperature", 2.0)) for one in both]
    reliability_figure(cooled, NAMES[:2], tmp_path / "two.png")
    assert pixels(tmp_path / "two.png").shape[1] == 2 * pixels(tmp_path / "one.png").shape[1]


def test_a_comparison_is_drawn(drawn, tmp_path):
    first, second = models(drawn, "binary")
    found = compare_models({"old": first, "new": second}, Resampling(bootstrap=100, confidence=0.95, seed=0))
    comparison_figure(found, tmp_path / "c.png")
    assert holds(pixels(tmp_path / "c.png"), COLOURS[0])

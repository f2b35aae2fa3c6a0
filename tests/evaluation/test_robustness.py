"""Robustness: the figures are those of the definitions, and wrong tables are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medopt.core.errors import DataError
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.evaluation.robustness import from_tables, robustness, shift_name
from medopt.figures.robustness import robustness_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.estimates import evaluate

WARM = Calibration("temperature", 1.3)
OPTIONS = {"confidence": 0.95}


def worse(table, family, level, seed=5):
    random = np.random.default_rng((seed, level, len(family)))
    noise = level * random.normal(size=table.logits.shape)
    return replace(table, model=shift_name("int8", family, level), logits=table.logits + noise)


def tables_of(drawn, task="binary", outputs=1, families=("noise", "blur")):
    clean = replace(drawn(150, outputs, task=task, patients=60), model=shift_name("int8"))
    return clean, {family: [worse(clean, family, level) for level in (1, 2, 3)] for family in families}


def test_values_are_means_of_the_aucs_and_the_drop_is_paired(drawn):
    clean, corrupted = tables_of(drawn)
    found = robustness(
        CalibratedPredictions(clean, "binary"),
        {f: [CalibratedPredictions(t, "binary") for t in ts] for f, ts in corrupted.items()},
        **OPTIONS,
    )
    truth = {f: [roc_auc_score(t.labels, t.logits[:, 0]) for t in ts] for f, ts in corrupted.items()}
    base = roc_auc_score(clean.labels, clean.logits[:, 0])
    for family, values in truth.items():
        assert [one.value for one in found.families[family].auc] == pytest.approx(values)
        assert found.families[family].drop.value == pytest.approx(base - np.mean(values))
    assert found.clean.value == pytest.approx(base)
    assert found.clean == evaluate(clean.labels, clean.logits, patients=clean.patient_id, bootstrap=100).auc
    assert found.mean.value == pytest.approx(np.mean(list(truth.values())))
    assert found.drop.value == pytest.approx(base - found.mean.value)
    assert found.drop.low < found.drop.value < found.drop.high
    # The same images made worse by nothing lose exactly nothing, in every draw.
    same = robustness(
        CalibratedPredictions(clean, "binary"), {"noise": [CalibratedPredictions(clean, "binary")]}, **OPTIONS
    )
    assert same.drop.value == 0 and same.drop.low is None  # no width: no interval is claimed


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 4), ("multilabel", 3)])
def test_all_can_be_computed_again_from_the_table(drawn, tmp_path, task, outputs):
    clean, corrupted = tables_of(drawn, task, outputs)
    every = [clean, *(t for ts in corrupted.values() for t in ts)]
    names = ["no", "yes"] if outputs == 1 else [f"label{k}" for k in range(outputs)]
    write_predictions(tmp_path / "t.csv", every, names, task, dict.fromkeys((t.model for t in every), WARM))
    found = from_tables(
        read_predictions(tmp_path / "t.csv"), lambda _, t: CalibratedPredictions(t, task, WARM), **OPTIONS
    )["int8"]
    direct = robustness(
        CalibratedPredictions(clean, task, WARM),
        {f: [CalibratedPredictions(t, task, WARM) for t in ts] for f, ts in corrupted.items()},
        **OPTIONS,
    )
    assert found == direct
    robustness_figure({"int8": found, "float": found}, tmp_path / "r.png", confidence=0.95)
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.width > 1000


def test_one_class_has_no_figure_and_still_a_picture(drawn, tmp_path):
    clean, corrupted = tables_of(drawn)
    none = np.zeros_like(clean.labels)
    scored = {f: [CalibratedPredictions(replace(t, labels=none), "binary") for t in ts] for f, ts in corrupted.items()}
    found = robustness(CalibratedPredictions(replace(clean, labels=none), "binary"), scored, **OPTIONS)
    assert found.mean.value is None and "not defined" in found.mean.note
    robustness_figure({"int8": found}, tmp_path / "r.png", confidence=0.95)
    assert (tmp_path / "r.png").stat().st_size > 1000


def test_other_cases_are_refused(drawn):
    clean, corrupted = tables_of(drawn)
    turned = corrupted["noise"][0].where(np.arange(150)[::-1])
    with pytest.raises(DataError, match="noise, level 1: its case_id"):
        robustness(
            CalibratedPredictions(clean, "binary"), {"noise": [CalibratedPredictions(turned, "binary")]}, **OPTIONS
        )

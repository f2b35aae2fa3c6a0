"""The linear model against scikit-learn, and as the last layer of a network."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from medopt.core.records import Task
from medopt.models import build_resnet
from medopt.training.features import put_head
from medopt.training.linear_model import LinearFit, LinearModel, choose_strength


def drawn(rows: int, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(3)
    features = random.standard_normal((rows, count)) * random.uniform(0.1, 9, count)
    features[:, 0] = 4  # says nothing
    noise = features[:, 1:4] / features[:, 1:4].std(0) + random.standard_normal((rows, 3))
    return features, noise.argmax(1)


@pytest.mark.parametrize(("rows", "count"), [(60, 200), (200, 30)], ids=["more features", "more rows"])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_it_is_scikit_learns_logistic_regression(rows: int, count: int, task: Task) -> None:
    features, classes = drawn(rows, count)
    truth = np.eye(3)[classes] if task == "multiclass" else (classes[:, None] == 1).astype(float)
    model = LinearFit(features, truth, task).model(0.1)
    spread = np.where(features.std(0) > 1e-8, features.std(0), np.inf)
    standard = (features - features.mean(0)) / spread
    peer = LogisticRegression(C=0.1, max_iter=5000, tol=1e-10)
    peer.fit(standard, classes if task == "multiclass" else classes == 1)
    own, theirs = model.logits(features), peer.decision_function(standard).reshape(rows, -1)
    if task == "multiclass":
        own, theirs = own - own.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True)
    np.testing.assert_allclose(own, theirs, atol=2e-3)


def test_a_weighted_row_counts_as_often_as_its_weight() -> None:
    features, classes = drawn(50, 8)
    truth = (classes[:, None] == 1).astype(float)
    twice = LinearFit(np.vstack([features] * 2), np.vstack([truth] * 2), "binary", np.full(100, 0.5)).model(1.0)
    np.testing.assert_allclose(
        twice.logits(features), LinearFit(features, truth, "binary").model(1.0).logits(features), atol=1e-3
    )


def test_the_more_penalized_of_equal_models_is_taken_and_an_undefined_score_is_none() -> None:
    features, classes = drawn(50, 8)
    fit = LinearFit(features, (classes[:, None] == 1).astype(float), "binary")
    assert choose_strength(fit, lambda model: 0.5)[0].strength == 0.001
    assert choose_strength(fit, lambda model: 0.7 if model.strength == 0.1 else float("nan"))[0].strength == 0.1


@pytest.mark.parametrize("head", ["last", "every_depth"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_as_the_last_layer_it_answers_the_same(head: str, dropout: float) -> None:
    network = build_resnet(width=0.125, size=(32, 32), head=cast(Literal["last"], head), dropout=dropout, outputs=2)
    network.eval()
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        features = network.features(images)  # type: ignore[operator]
        read = torch.cat(features if head == "every_depth" else features[-1:], 1).double().numpy()
        random = np.random.default_rng(0)
        linear = LinearModel(random.standard_normal((2, read.shape[1])), np.array([0.5, -2.0]), 1.0)
        put_head(network, linear)
        torch.testing.assert_close(
            network(images).double(), torch.from_numpy(linear.logits(read)), atol=1e-4, rtol=1e-4
        )


def test_each_output_is_fitted_to_the_rows_of_which_its_label_is_known() -> None:
    features, classes = drawn(80, 8)
    truth = np.eye(3)[classes][:, :2]
    truth[:40, 1] = np.nan
    model = LinearFit(features, truth, "multilabel").model(1.0)
    weights = np.repeat([0.0, 1.0], 40)
    alone = LinearFit(features, np.nan_to_num(truth), "multilabel", weights).model(1.0)
    whole = LinearFit(features, np.nan_to_num(truth), "multilabel").model(1.0)
    np.testing.assert_allclose(model.logits(features)[:, 1], alone.logits(features)[:, 1], atol=1e-3)
    np.testing.assert_allclose(model.logits(features)[:, 0], whole.logits(features)[:, 0], atol=1e-3)

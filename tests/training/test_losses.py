from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from medopt.config import Study
from medopt.core.records import Case
from medopt.training.losses import Teacher, build_loss, class_weights

Build = Callable[..., Callable[[Tensor, Tensor], Tensor]]


@pytest.fixture
def build(tiny_study: Callable[..., Study]) -> Build:
    def make(task: str, labels: list[Any], outputs: int = 2, **training: Any) -> Callable[[Tensor, Tensor], Tensor]:
        study = tiny_study(data={"task": task, "labels": [str(k) for k in range(outputs)]}, training=training)
        rows = [tuple(np.atleast_1d(label).tolist()) for label in labels]
        loss = build_loss(study, [Case(str(k), str(k), "", row, "train") for k, row in enumerate(rows)])
        return lambda logits, target: loss(logits, target).mean()

    return make


def test_binary_loss_is_the_log_loss(build: Build) -> None:
    logits, target = torch.randn(50, 1), (torch.rand(50, 1) > 0.5).float()
    found = build("binary", [0, 1])(logits, target)
    assert float(found) == pytest.approx(log_loss(target[:, 0], logits.sigmoid()[:, 0].double()), rel=1e-5)


def test_multiclass_loss_is_the_log_loss(build: Build) -> None:
    logits, target = torch.randn(50, 4), torch.randint(4, (50,))
    found = build("multiclass", [0, 1, 2, 3], 4)(logits, torch.eye(4)[target])
    expected = log_loss(target, logits.double().softmax(1), labels=range(4))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_multilabel_loss_is_the_mean_over_labels(build: Build) -> None:
    logits, target = torch.randn(50, 3), (torch.rand(50, 3) > 0.5).float()
    found = build("multilabel", [[0, 1, 0]], 3)(logits, target)
    expected = np.mean([log_loss(target[:, k], logits.sigmoid()[:, k].double()) for k in range(3)])
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_balanced_weights_make_a_rare_finding_count_as_much_as_its_absence(build: Build) -> None:
    loss = build("binary", [1] + [0] * 9, class_weights="balanced")
    zero = torch.zeros(1, 1)
    assert float(loss(zero, torch.ones(1, 1))) == pytest.approx(9 * float(loss(zero, torch.zeros(1, 1))))
    # Over the training cases, the best constant answer is then 1/2.
    logits = torch.zeros(10, 1, requires_grad=True)
    loss(logits, torch.tensor([[1.0]] + [[0.0]] * 9)).backward()
    assert logits.grad is not None and float(logits.grad.sum()) == pytest.approx(0, abs=1e-6)


def test_balanced_weights_of_classes_are_sklearns(build: Build) -> None:
    labels = [0] * 5 + [1] * 2 + [2] * 3
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    loss = build("multiclass", labels, 3, class_weights="balanced")
    logits, target = torch.randn(10, 3), torch.tensor(labels)
    picked = -logits.log_softmax(1)[torch.arange(10), target].double()
    expected = np.average(picked, weights=weights[labels])
    assert float(loss(logits, torch.eye(3)[target])) == pytest.approx(float(expected), rel=1e-5)


def test_a_label_that_training_never_shows_does_not_make_the_loss_infinite(build: Build) -> None:
    loss = build("multilabel", [[0, 1, 1], [0, 1, 0]], 3, class_weights="balanced")
    assert loss(torch.zeros(2, 3), torch.tensor([[0.0, 1, 1], [0, 1, 0]])).isfinite()


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_smoothing_moves_targets_toward_one_half(build: Build, task: str) -> None:
    loss = build(task, [[0, 1]], label_smoothing=0.2)
    logit = torch.tensor([[np.log(9.0)]], dtype=torch.float32, requires_grad=True)  # probability 0.9 is 1 smoothed
    loss(logit, torch.ones(1, 1)).backward()
    assert logit.grad is not None and abs(float(logit.grad)) < 1e-6


def test_smoothing_moves_classes_toward_an_even_share(build: Build) -> None:
    loss = build("multiclass", [0, 1, 2], 3, label_smoothing=0.3)
    logits = torch.tensor([[0.8, 0.1, 0.1]]).log().requires_grad_()
    loss(logits, torch.eye(3)[:1]).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize(("task", "outputs"), [("binary", 2), ("multiclass", 3)])
def test_focal_loss_lets_easy_cases_count_less(build: Build, task: str, outputs: int) -> None:
    """(1 - p)^2 times the cross-entropy (Lin et al. 2017, equation 4): at p = 0.9 a hundredth of it is left."""
    labels = list(range(outputs))
    focal = build(task, labels, outputs, loss="focal", focal_gamma=2)
    plain = build(task, labels, outputs)
    for likely, left in ((0.9, 0.01), (0.5, 0.25), (0.1, 0.81)):
        if task == "binary":
            logits, target = torch.tensor([[np.log(likely / (1 - likely))]], dtype=torch.float32), torch.ones(1, 1)
        else:
            logits, target = torch.tensor([[likely, (1 - likely) / 2, (1 - likely) / 2]]).log(), torch.eye(3)[:1]
        assert float(focal(logits, target)) == pytest.approx(left * float(plain(logits, target)), rel=1e-4)
    assert float(build(task, labels, outputs, loss="focal", focal_gamma=0)(logits, target)) == pytest.approx(
        float(plain(logits, target))
    )


def test_named_weights_weigh_each_class(build: Build) -> None:
    loss = build("binary", [0, 1], class_weights={"0": 1.0, "1": 5.0})
    zero = torch.zeros(1, 1)
    assert float(loss(zero, torch.ones(1, 1))) == pytest.approx(5 * float(loss(zero, torch.zeros(1, 1))))
    classes = build("multiclass", [0, 1, 2], 3, class_weights={"0": 1.0, "1": 2.0, "2": 3.0})
    losses = [float(classes(torch.zeros(1, 3), torch.eye(3)[k : k + 1])) for k in range(3)]
    assert losses == pytest.approx([np.log(3) * k for k in (1, 2, 3)])


def test_a_mixed_target_is_best_answered_by_its_share(build: Build) -> None:
    logit = torch.tensor([[np.log(0.7 / 0.3)]], dtype=torch.float32, requires_grad=True)
    build("binary", [0, 1])(logit, torch.tensor([[0.7]])).backward()
    assert logit.grad is not None and abs(float(logit.grad)) < 1e-6


def test_a_label_that_is_not_known_adds_nothing_and_all_known_ones_count_alike(build: Build) -> None:
    nan = float("nan")
    rows = [[0, None, 1], [1, 1, None], [0, None, None], [1, 0, 1]]
    target = torch.tensor([[0, nan, 1], [1, 1, nan], [0, nan, nan], [1, 0, 1]])
    logits = torch.randn(4, 3, requires_grad=True)
    for settings in ({}, {"loss": "focal"}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}):
        loss = build("multilabel", rows, 3, **settings)(logits, target)
        (slope,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and (slope[target.isnan()] == 0).all() and (slope[~target.isnan()] != 0).all()
    known = ~target.isnan()
    expected = log_loss(target[known], logits.detach().sigmoid()[known].double())
    assert float(build("multilabel", rows, 3)(logits, target)) == pytest.approx(float(expected), rel=1e-5)


def test_balanced_weights_count_known_labels_only(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(data={"task": "multilabel", "labels": ["a", "b"]}, training={"class_weights": "balanced"})
    rows: list[tuple[int | None, int]] = [(1, 1), (0, 0), (0, 1), (0, 0), (None, 1), (None, 0)]
    cases = [Case(str(k), str(k), "", row, "train") for k, row in enumerate(rows)]
    assert class_weights(study, cases) == pytest.approx(np.array([[0.5 / 0.75, 1], [0.5 / 0.25, 1]]))


def test_a_teacher_says_nothing_of_labels_that_are_not_known(build: Build) -> None:
    teacher = Teacher([torch.nn.Flatten()], 0.5, build("multilabel", [[1, None]], 2), task="multilabel")
    found = teacher.answers(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]))
    assert found[0, 0] == 0.5 and found[0, 1].isnan()

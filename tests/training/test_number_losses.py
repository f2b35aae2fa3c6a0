"""The losses of numbers and of grades, against written-out formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medopt.config import Study
from medopt.core.records import Case
from medopt.training.linear_model import LinearFit
from medopt.training.losses import Teacher, build_loss, cumulative_loss


def study(task: str, **training: Any) -> Study:
    labels = {} if task == "regression" else {"labels": ["a", "b", "c"]}
    data = {"manifest": "m.csv", "task": task, **labels}
    described = {"name": "numbers", "question": "?", "data": data, "prepare": {"size": [16, 16]}, "training": training}
    return Study.model_validate(described)


CASES = [Case("c", "p", "i.png", (1,), "train")]


@pytest.mark.parametrize(
    ("name", "wanted"), [("huber", [0.125, 1.5]), ("absolute", [0.5, 2.0]), ("squared", [0.125, 2.0])]
)
def test_the_loss_of_a_number(name: str, wanted: list[float]) -> None:
    loss = build_loss(study("regression", loss=name), CASES)
    assert loss(torch.tensor([[1.5], [0.0]]), torch.tensor([[1.0], [2.0]])).tolist() == pytest.approx(wanted)


def test_a_number_has_the_huber_loss_and_grades_the_cumulative_one_by_default() -> None:
    assert (study("regression").loss, study("ordinal").loss, study("multiclass").loss) == (
        *("huber", "cumulative", "cross_entropy"),
    )
    assert study("ordinal", loss="cross_entropy").loss == "cumulative"


def test_the_cumulative_loss_is_the_log_loss_of_above_grade_k() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    grades = torch.tensor([0, 1, 2, 3, 1])
    probability = logits.softmax(1).double().numpy()
    wanted = []
    for row, grade in enumerate(grades.tolist()):
        above = [probability[row, k + 1 :].sum() for k in range(3)]
        wanted.append(-np.mean([np.log(p if grade > k else 1 - p) for k, p in enumerate(above)]))
    found = cumulative_loss(logits, torch.eye(4)[grades])
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_far_grade_costs_more_than_a_near_one() -> None:
    sure_of_last = torch.tensor([[0.0, 0.0, 0.0, 6.0]] * 4)
    losses = cumulative_loss(sure_of_last, torch.eye(4)).tolist()
    assert losses == sorted(losses, reverse=True) and losses[0] > 2 * losses[2]


def test_the_cumulative_loss_is_smallest_at_the_true_distribution() -> None:
    """A proper score: of many draws from p, no other prediction has a lower mean loss than p."""
    true = torch.tensor([0.1, 0.4, 0.3, 0.2])

    def mean_loss(p: torch.Tensor) -> float:
        return float((true * cumulative_loss(p.log().expand(4, 4), torch.eye(4))).sum())

    best = mean_loss(true)
    for other in ([0.1, 0.5, 0.2, 0.2], [0.2, 0.3, 0.3, 0.2], [0.05, 0.4, 0.35, 0.2], [0.25] * 4):
        assert mean_loss(torch.tensor(other)) > best


@pytest.mark.parametrize(
    "training",
    [
        {"loss": "focal"},
        {"loss": "cumulative"},
        {"class_weights": "balanced"},
        {"sampling": "balanced"},
        {"label_smoothing": 0.1},
        {"teacher": "somewhere"},
    ],
)
def test_a_number_refuses_what_is_for_labels(training: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="training"):
        study("regression", **training)


def test_labels_refuse_the_losses_of_numbers() -> None:
    for task in ("multiclass", "ordinal"):
        with pytest.raises(ValueError, match="huber is not one of"):
            study(task, loss="huber")


def test_the_linear_model_of_a_number_is_ridge_regression() -> None:
    random = np.random.default_rng(0)
    features, noise = random.normal(size=(40, 5)), random.normal(size=(40, 1))
    target = features @ np.array([[1.0], [0], [2], [0], [-1]]) + 0.1 * noise + 3
    model = LinearFit(features, target, "regression").model(10.0)
    standard = (features - features.mean(0)) / features.std(0)
    inverse = np.linalg.inv(standard.T @ standard + np.eye(5) / 10)
    wanted = standard @ (inverse @ standard.T @ (target - target.mean())) + target.mean()
    assert model.logits(features) == pytest.approx(wanted, abs=1e-3)


def test_a_network_before_pruning_teaches_its_numbers_as_they_are() -> None:
    """Not their sigmoid: the pruned network of a regression study imitates the number itself."""
    asked = study("regression")
    teacher = Teacher([torch.nn.Flatten()], 0.5, build_loss(asked, CASES, of_answers=True), task="regression")
    image, target = torch.tensor([[[[-2.5]]], [[[1.5]]]]), torch.tensor([[0.0], [0.0]])
    answers = teacher.answers(image, target)
    assert answers.tolist() == [[-2.5], [1.5]]
    of_labels, outputs = torch.tensor([1.0, 1.0]), torch.tensor([[-2.5], [1.0]])
    assert teacher.joined(of_labels, outputs, answers).tolist() == pytest.approx([0.5, 0.5 + 0.5 * 0.125])

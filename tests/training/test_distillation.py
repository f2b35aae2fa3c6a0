from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from medopt.config import Study
from medopt.core.records import Case
from medopt.models import build_model
from medopt.training.losses import Teacher, build_loss
from medopt.training.step import Stepper, start_state


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multilabel", 3), ("multiclass", 3)])
def test_the_loss_lies_between_that_of_the_truth_and_that_of_the_teachers_answers(
    tiny_study: Callable[..., Study], task: str, outputs: int
) -> None:
    study = tiny_study(data={"labels": ["a", "b", "c"] if outputs == 3 else ["a", "b"], "task": task})
    network, images = build_model(study).eval(), torch.rand(4, 1, 16, 16)
    truth = torch.zeros(4, outputs)
    truth[:, 0] = 1
    with torch.no_grad():
        logits = network(images)
    answers = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
    loss, pupil = build_loss(study, []), torch.randn(4, outputs)
    for share in (0.0, 0.3, 1.0):
        teacher = Teacher([network], share, build_loss(study, [], of_answers=True), task=task)
        torch.testing.assert_close(teacher.answers(images, truth), answers)
        found = teacher.joined(loss(pupil, truth), pupil, teacher.answers(images, truth))
        torch.testing.assert_close(found, loss(pupil, (1 - share) * truth + share * answers))


def test_several_teachers_answer_with_the_mean_of_their_logits(tiny_study: Callable[..., Study]) -> None:
    study, images = tiny_study(), torch.rand(4, 1, 16, 16)
    networks = [build_model(study.model_copy(update={"seed": seed})).eval() for seed in (1, 2, 3)]
    teacher = Teacher(networks, 0.5, build_loss(study, [], of_answers=True), task="binary")
    with torch.no_grad():
        wanted = torch.stack([network(images) for network in networks]).mean(0).sigmoid()
    torch.testing.assert_close(teacher.answers(images, torch.zeros(4, 1)), wanted)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_class_weights_do_not_count_twice(tiny_study: Callable[..., Study], task: str) -> None:
    """A pupil of a balanced teacher ends where the teacher is, not at twice the shift; 4 of 100 have the finding."""
    labels = ["a", "b"]
    study = tiny_study(
        data={"labels": labels, "task": task}, training={"class_weights": "balanced", "label_smoothing": 0.1}
    )
    count = 1 if task == "binary" else 2
    table = np.arange(100)[:, None] < np.array([4, 50][:count])
    cases = [Case(str(k), str(k), "", tuple(map(int, row)), "train") for k, row in enumerate(table)]
    truth = torch.from_numpy(table).float()
    balanced = torch.zeros(100, count)  # what balanced weights lead to where the images say nothing: 1/2
    teacher = Teacher([torch.nn.Flatten()], 0.7, build_loss(study, cases, of_answers=True), task=study.data.task)
    logits = torch.zeros(100, count, requires_grad=True)
    loss = build_loss(study, cases)(logits, truth)
    (slope,) = torch.autograd.grad(teacher.joined(loss, logits, teacher.answers(balanced, truth)).sum(), logits)
    assert slope.sum(0).abs().max() < 1e-4


def test_a_network_comes_to_answer_as_its_teacher(tiny_study: Callable[..., Study]) -> None:
    """The labels say the opposite: with a teacher alone the network follows the teacher, without one the labels."""
    study = tiny_study(model={"zero_init_residual": False}, training={"optimizer": {"lr": 0.003}})
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 1, 16, 16, generator=generator)
    images[::2, :, :, :8] += 0.5
    fabric = Fabric(accelerator="cpu", devices=1)
    cleverer = build_model(study.model_copy(update={"seed": 5}))
    loss = build_loss(study, [])
    truth = torch.zeros(16, 1)
    truth[::2] = 1
    trained = start_state(study, fabric, cleverer)
    for number in range(25):
        Stepper(study, fabric, trained, loss).step([(images, truth)], 0.003, number=number)
    with torch.no_grad():
        for _ in range(60):  # the normalizations' statistics come to those of these weights
            trained.model(images)
    teacher = Teacher([trained.model], 1.0, build_loss(study, [], of_answers=True), task=study.data.task)
    follows = {}
    for name, one in (("teacher", teacher), ("labels", None)):
        state = start_state(study, fabric)
        stepper = Stepper(study, fabric, state, loss, one)
        for number in range(25):
            stepper.step([(images, 1 - truth)], 0.003, number=number)
        state.model.train()
        with torch.no_grad():
            follows[name] = float((((state.model(images) > 0) == truth.bool()).float()).mean())
    assert follows["teacher"] > 0.9 and follows["labels"] < 0.1

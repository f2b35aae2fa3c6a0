from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning_fabric import Fabric

from medopt.config import Study
from medopt.models import build_model
from medopt.training.losses import Teacher, build_loss
from medopt.training.step import Stepper, start_state


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multilabel", 3), ("multiclass", 3)])
def test_targets_lie_between_the_truth_and_the_teachers_answers(
    tiny_study: Callable[..., Study], task: str, outputs: int
) -> None:
    study = tiny_study(data={"labels": ["a", "b", "c"] if outputs == 3 else ["a", "b"], "task": task})
    network, images = build_model(study).eval(), torch.rand(4, 1, 16, 16)
    truth = torch.zeros(4, outputs)
    truth[:, 0] = 1
    with torch.no_grad():
        logits = network(images)
    answers = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
    for share in (0.0, 0.3, 1.0):
        found = Teacher(network, share, exclusive=task == "multiclass").targets(images, truth)
        torch.testing.assert_close(found, (1 - share) * truth + share * answers)
        if task == "multiclass":
            torch.testing.assert_close(found.sum(1), torch.ones(4))


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
    teacher = Teacher(trained.model, 1.0, exclusive=False)
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

"""Tuning a start: what learns, how fast, and what stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning_fabric import Fabric

from medopt.config import FineTune, Study
from medopt.models import build_model
from medopt.training.fine_tuning import hold_statistics, pull_toward, rate_factor
from medopt.training.losses import build_loss
from medopt.training.step import Stepper, TrainingState, start_state


def stepped(study: Study, tune: FineTune, rate: float = 0.01) -> tuple[dict[str, torch.Tensor], TrainingState]:
    """The weights before, and the state after one step."""
    state = start_state(study, Fabric(accelerator="cpu", devices=1), build_model(study), tune)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    state.network.train()
    if tune.statistics == "frozen":
        hold_statistics(state.network)
    images, truth = torch.rand(4, 1, 16, 16), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    Stepper(study, state_fabric(), state, build_loss(study, [])).step([(images, truth)], rate)
    return before, state


def state_fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize(
    ("freeze", "kept"),
    [("nothing", ()), ("layer2", ("conv1", "bn1", "layer1", "layer2")), ("all", ("conv1", "layer1", "layer4"))],
)
def test_frozen_stages_keep_their_weights(tiny_study: Callable[..., Study], freeze: str, kept: tuple[str, ...]) -> None:
    study = tiny_study(model={"zero_init_residual": False})
    before, state = stepped(study, FineTune.model_validate({"freeze": freeze}))
    changed = {
        name.split(".")[0] for name, value in state.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert "fc" in changed and not changed & set(kept)
    if freeze == "nothing":
        assert {"conv1", "layer1", "layer4"} <= changed


def test_statistics_are_held_or_follow_the_batch(tiny_study: Callable[..., Study]) -> None:
    for statistics in ("frozen", "live"):
        before, state = stepped(tiny_study(), FineTune.model_validate({"statistics": statistics}))
        same = torch.equal(state.model.state_dict()["bn1.running_mean"], before["bn1.running_mean"])
        assert same is (statistics == "frozen")


def test_the_rate_falls_by_the_decay_a_stage() -> None:
    tune = FineTune(layer_decay=0.5)
    names = ("fc.weight", "layer4.0.reduce.weight", "layer1.1.norm1.bias", "conv1.weight", "bn1.bias")
    assert [rate_factor(tune, name) for name in names] == [1, 0.5, 0.0625, 0.03125, 0.03125]


def test_each_group_has_its_own_rate(tiny_study: Callable[..., Study]) -> None:
    _, state = stepped(tiny_study(), FineTune(freeze="nothing", layer_decay=0.5), rate=0.01)
    rates = sorted({group["lr"] for group in state.optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([0.01 * 0.5**stage for stage in range(6)])


def test_weights_are_pulled_toward_the_start(tiny_study: Callable[..., Study]) -> None:
    value, anchor = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    pull_toward([value], [anchor], 0.25)
    assert value.tolist() == [0.75, 2.5]
    study = tiny_study(training={"optimizer": {"weight_decay": 0.0}})
    before, free = stepped(study, FineTune(toward_start=0))
    _, held = stepped(study, FineTune(toward_start=100.0), rate=0.01)  # the whole way back
    name = "fc.weight"
    assert not torch.equal(free.model.state_dict()[name], before[name])
    torch.testing.assert_close(held.model.state_dict()[name], before[name])

"""What one step does: micro-batches add up, clipping bounds, the average follows, and optimizers switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medopt.config import Optimizer, Study
from medopt.core.errors import TrainingError
from medopt.core.records import Case
from medopt.training.early_stopping import first_plateau
from medopt.training.hardware import open_fabric
from medopt.training.losses import build_loss
from medopt.training.optimizers import build_optimizer, optimizer_in_force, scores_in_force, takes_fused
from medopt.training.schedules import learning_rate
from medopt.training.step import Stepper, TrainingState, start_state

CASES = [Case(str(k), str(k), "", (k % 2,), "train") for k in range(8)]


def stepper(study: Study) -> tuple[Stepper, TrainingState]:
    fabric = open_fabric(study.training)
    state = start_state(study, fabric)
    return Stepper(study, fabric, state, build_loss(study, CASES)), state


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 16, 16, generator=generator), (torch.arange(count) % 2).float()[:, None]


def weights(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])


@pytest.fixture
def plain(tiny_study: Callable[..., Study]) -> Callable[..., Study]:
    def make(**training: Any) -> Study:
        return tiny_study(training={"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0}, "clip_norm": 0} | training)

    return make


def test_gradients_of_micro_batches_add_up_to_the_step_of_the_whole_batch(plain: Callable[..., Study]) -> None:
    """With fixed batch statistics, which only a whole batch has, the step is the same to rounding."""
    found = []
    for parts in (1, 2, 4):
        made, state = stepper(plain(class_weights="balanced"))
        for module in state.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        image, target = images()
        batch = list(zip(image.chunk(parts), target.chunk(parts), strict=True))
        loss, norm = made.step(batch, 0.1)
        found.append((float(loss), float(norm), weights(state)))
    for loss, norm, values in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5) and norm == pytest.approx(found[0][1], rel=1e-4)
        torch.testing.assert_close(values, found[0][2], atol=1e-6, rtol=1e-4)


def test_clipping_bounds_the_change_of_a_step(plain: Callable[..., Study]) -> None:
    def change(clip: float) -> tuple[float, float]:
        made, state = stepper(
            plain(clip_norm=clip, optimizer={"name": "sgd", "lr": 1, "momentum": 0, "weight_decay": 0})
        )
        before = weights(state)
        _, norm = made.step([images()], 1.0)
        return float(norm), float((weights(state) - before).norm())

    norm, free = change(0)
    assert free == pytest.approx(norm, rel=1e-3)
    clipped_norm, clipped = change(0.01)
    assert clipped_norm == pytest.approx(norm) and clipped == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_the_exponential_one_of_torch(plain: Callable[..., Study]) -> None:
    """From the step on at which it remembers as much as it is to: (1 + n) / (10 + n) of 0.8 is step 35."""
    made, state = stepper(plain(ema_decay=0.8))
    made.step([images()], 0.1, number=0)
    assert state.average is not None
    state.average.load_state_dict(state.model.state_dict())
    expected = torch.optim.swa_utils.AveragedModel(
        state.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8), use_buffers=True
    )
    expected.update_parameters(state.model)
    for step in range(4):
        made.step([images()], 0.1, number=35 + step)
        expected.update_parameters(state.model)
    assert state.judged is state.average
    theirs = expected.module.state_dict()
    for name, value in state.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=1e-5)
    assert (weights(state) - torch.cat([p.flatten() for p in state.average.parameters()])).abs().max() > 1e-3


def test_a_short_training_does_not_remember_the_random_start(plain: Callable[..., Study]) -> None:
    """After 40 steps 0.99 alone would keep two thirds of the first weights; less than a thousandth is left."""
    made, state = stepper(plain(ema_decay=0.99))
    assert state.average is not None
    kept = state.average
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.fill_(1000.0)
    for step in range(40):
        made.step([images()], 1e-9, number=step)
    assert all(parameter.mean() < 1.5 for parameter in kept.parameters())


def scarce(state: TrainingState, most: int) -> list[int]:
    """Let the network ask for more memory than there is where more than `most` images come; returns what came."""
    forward, came = state.model.forward, []

    def run(x: Tensor) -> Tensor:
        came.append(len(x))
        out = forward(x)
        if len(x) > most:
            torch.empty(2**58)
        return out

    state.model.forward = run  # type: ignore[method-assign]
    return came


def test_where_memory_runs_out_half_as_many_images_pass_at_once_and_the_step_is_the_same(
    plain: Callable[..., Study],
) -> None:
    """The running statistics, too, are those of a training that began with the smaller micro-batches."""
    said: list[str] = []
    made, state = stepper(plain())
    made._say = said.append
    came = scarce(state, 2)
    image, target = images()
    for number in range(3):
        loss, _ = made.step([(image, target)], 0.1, number=number)
    assert came == [8, 4, 2, 2, 2, 2, *[2] * 8]
    assert len(said) == 2 and "out of memory on cpu with 8 images at once: from here on 4" in said[0]
    assert "training.micro_batch=2" in said[1]
    other, expected = stepper(plain())
    for number in range(3):
        parts = list(zip(image.chunk(4), target.chunk(4), strict=True))
        expected_loss, _ = other.step(parts, 0.1, number=number)
    assert torch.equal(loss, expected_loss)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, expected.model.state_dict()[name]), name


def test_where_not_even_two_images_fit_the_way_out_is_told(plain: Callable[..., Study]) -> None:
    made, state = stepper(plain())
    scarce(state, 1)
    with pytest.raises(TrainingError, match=r"Out of memory on cpu with 2 images at once.*training\.recompute: true"):
        made.step([images()], 0.1)


def test_another_fault_is_no_lack_of_memory(plain: Callable[..., Study]) -> None:
    made, _ = stepper(plain())
    with pytest.raises(RuntimeError, match="channels"):
        made.step([(torch.rand(4, 3, 16, 16), torch.zeros(4, 1))], 0.1)


def kept_bytes(model: nn.Module, image: Tensor) -> int:
    """What a forward pass leaves for the backward pass."""
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.nbytes)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(image)
    return sum(kept)


@pytest.mark.parametrize("size", [[16, 16], [8, 12, 16]])
def test_recomputed_blocks_give_equal_gradients_and_statistics(
    tiny_study: Callable[..., Study], size: list[int]
) -> None:
    generator, found = torch.Generator().manual_seed(0), []
    image, target = torch.rand(4, 1, *size, generator=generator), (torch.arange(4) % 2).float()[:, None]
    for recompute in (False, True):
        made, state = stepper(tiny_study(prepare={"size": size}, training={"recompute": recompute}))
        for number in range(2):
            made.step([(image, target)], 0.01, number=number)
        gradients = [parameter.grad for parameter in state.model.parameters()]
        found.append((gradients, state.model.state_dict(), kept_bytes(state.model.train(), image)))
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert one is not None and two is not None and torch.equal(one, two)
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
    assert found[1][2] < 0.5 * found[0][2]  # bytes that wait for the backward pass


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "sgd"])
@pytest.mark.parametrize("size", [[9, 9], [5, 6, 7]])
def test_a_fused_optimizer_makes_the_same_steps(name: str, size: list[int]) -> None:
    kind, layout = (nn.Conv2d, torch.channels_last) if len(size) == 2 else (nn.Conv3d, torch.channels_last_3d)
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(kind(3, 5, 3), nn.ReLU(), kind(5, 7, 1)).to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = build_optimizer(Optimizer(name=name, lr=0.01, weight_decay=0.1), model, fused=fused)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))).square().sum().backward()
            optimizer.step()
        ends.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("size", [[16, 16], [8, 12, 16]])
def test_gradients_lie_in_memory_as_the_weights_do(tiny_study: Callable[..., Study], size: list[int]) -> None:
    made, state = stepper(tiny_study(prepare={"size": size}))
    made.step([(torch.rand(4, 1, *size), torch.zeros(4, 1))] * 2, 0.01)
    for parameter in state.model.parameters():  # a fused optimizer takes both in the order of memory
        assert parameter.grad is not None
        wide = [axis for axis, length in enumerate(parameter.shape) if length > 1]
        assert [parameter.stride(axis) for axis in wide] == [parameter.grad.stride(axis) for axis in wide]


def test_a_fused_optimizer_is_for_a_cpu_or_a_gpu_without_a_loss_scale(plain: Callable[..., Study]) -> None:
    _, state = stepper(plain())
    assert takes_fused("cuda", state.model) and takes_fused("cpu", state.model)
    assert not takes_fused("cuda", state.model, object()) and not takes_fused("xla", state.model)
    assert all(group["fused"] for group in state.optimizer.param_groups)  # plain() trains on a CPU


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [([0.5, 0.6, 0.7], None), ([0.5, 0.4, 0.5], 3), ([0.7, 0.6, 0.8, 0.1, 0.2, 0.9], 5), ([], None)],
)
def test_a_plateau_is_so_many_epochs_without_progress(scores: list[float], epoch: int | None) -> None:
    assert first_plateau(scores, 2) == epoch


def test_the_optimizer_switches_once_and_for_good(tiny_study: Callable[..., Study]) -> None:
    switch = {"to": {"name": "sgd", "lr": 0.03}, "patience": 2}
    study = tiny_study(training={"optimizer": {"name": "adam", "lr": 0.001}, "switch": switch})
    scores = [0.5, 0.7, 0.6, 0.6, 0.8, 0.9]
    names = [optimizer_in_force(study, scores[:epoch]).name for epoch in range(len(scores) + 1)]
    assert names == ["adam"] * 4 + ["sgd"] * 3
    assert optimizer_in_force(study, scores) == Optimizer(name="sgd", lr=0.03)


def test_the_second_optimizer_begins_at_its_own_rate(tiny_study: Callable[..., Study]) -> None:
    """A plateau that made the optimizers change has not lowered the new one's rate."""
    switch = {"to": {"name": "sgd", "lr": 0.03}, "patience": 3}
    schedule = {"name": "plateau", "patience": 2, "factor": 0.1}
    study = tiny_study(training={"optimizer": {"name": "adam", "lr": 0.001}, "switch": switch, "schedule": schedule})
    scores, rates = [0.5, 0.7, 0.6, 0.6, 0.6, 0.8, 0.7, 0.7, 0.7], []
    for epoch in range(len(scores) + 1):
        now, told = optimizer_in_force(study, scores[:epoch]), scores_in_force(study, scores[:epoch])
        rates.append(learning_rate(study.training.schedule, now.rate, epoch, 1, 9, told))
    assert rates == pytest.approx([0.001] * 4 + [0.0001, 0.03, 0.03, 0.03, 0.003, 0.003])

"""No tensor of a training stays on the CPU where another device trains.

torch's meta device stands in for a GPU: it computes shapes only, but refuses to mix its tensors with the CPU's, and to
be looked at before a step is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medopt.config import FineTune, Study
from medopt.core.records import Case
from medopt.data.loaders import KeyedDataset, on_device
from medopt.data.residence import HeldImages
from medopt.data.samplers import OrderedSampler, StepSampler
from medopt.manifest.covariates import with_covariates
from medopt.models import build_model
from medopt.training.epoch import predict_logits
from medopt.training.job import PreparedSplit
from medopt.training.losses import Teacher, build_loss
from medopt.training.self_supervised import Embedder, vicreg
from medopt.training.step import Stepper, start_state

META = torch.device("meta")
SmallSet = Callable[..., PreparedSplit]


class Elsewhere:
    """What a step asks of Fabric, on a device that is not the CPU."""

    device, world_size = META, 1
    strategy = SimpleNamespace(precision=SimpleNamespace())

    def setup_module(self, model: nn.Module) -> nn.Module:
        return model

    def setup_optimizers(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def no_backward_sync(self, model: nn.Module, enabled: bool) -> Any:
        return nullcontext()

    def autocast(self) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_gradients(self, model: nn.Module, optimizer: Any, *, max_norm: float, error_if_nonfinite: bool) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


@pytest.fixture
def elsewhere() -> Any:
    return Elsewhere()


def case(number: int, task: str) -> Case:
    labels = {"multilabel": (number % 2, number // 2 % 2), "multiclass": (number % 3,)}
    return Case(str(number), str(number), f"{number}.dcm", labels.get(task, (number % 2,)), "train")


DATA = {
    "binary": {},
    "multilabel": {"labels": ["mass", "effusion"]},
    "multiclass": {"labels": ["a", "b", "c"]},
}


def meta_study(tiny_study: Callable[..., Study], task: str, size: list[int], **training: Any) -> Study:
    return tiny_study(
        prepare={"size": size},
        data={"task": task, **DATA[task]},
        augment={"shift": "radiograph", "probability": 1.0},
        training={"class_weights": "balanced", **training},
    )


@pytest.mark.parametrize("size", [[16, 16], [8, 16, 16]])
@pytest.mark.parametrize("task", list(DATA))
def test_a_step_takes_place_on_the_device(
    task: str, size: list[int], tiny_study: Callable[..., Study], tiny_set: SmallSet, elsewhere: Any, tmp_path: Any
) -> None:
    study = meta_study(tiny_study, task, size, label_smoothing=0.1, loss="focal", mixup=0.2)
    cases, files = [case(number, task) for number in range(8)], tiny_set(tmp_path, study, 8).files
    state = start_state(study, elsewhere, tune=FineTune(freeze="layer1", toward_start=0.1))
    loss = build_loss(study, cases)
    teacher = Teacher(
        [build_model(study).to(META)], 0.5, build_loss(study, cases, of_answers=True), task=study.data.task
    )
    stepper = Stepper(study, elsewhere, state, loss, teacher)
    sampler = StepSampler(study, cases, 8, 4, 0, 1)
    sampler.epoch = 0
    for where in (HeldImages(files, META), files):
        batches = [(image, target) for image, target, _ in on_device(study, cases, where, sampler, META)]
        assert {value.device for batch in batches for value in batch} == {META}
        total, norm = stepper.step(batches, 0.1)
        assert (total.device, norm.device) == (META, META)


@pytest.mark.parametrize(
    "model", [{"pooling": "attention", "tile": [32, 32]}, {"pooling": "top_k", "tile": [32, 32], "top_k": 2}]
)
def test_so_does_one_of_tiles_and_of_covariates(
    model: dict[str, Any], tiny_study: Callable[..., Study], elsewhere: Any
) -> None:
    study = tiny_study(prepare={"size": [64, 48]}, model=model, data={"covariates": ["age"]})
    cases = [replace(case(number, "binary"), covariates=(f"{number}",)) for number in range(4)]
    study = with_covariates(study, cases)
    state = start_state(study, elsewhere, tune=FineTune(freeze="nothing"))
    stepper = Stepper(study, elsewhere, state, build_loss(study, cases))
    data = KeyedDataset(study, cases, None, changes=False)
    targets = data.__getitems__([(-1, number, 0) for number in range(4)])[1]
    assert stepper.step([(torch.rand(4, 1, 64, 48), targets)], 0.1)[0].device == META


def test_validation_brings_everything_back(
    tiny_study: Callable[..., Study], tiny_set: SmallSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    study = meta_study(tiny_study, "binary", [16, 16])
    cases, files = [case(number, "binary") for number in range(8)], tiny_set(tmp_path, study, 8).files
    # nothing can be copied from the meta device: zeros are what comes
    monkeypatch.setattr(Tensor, "cpu", lambda value: torch.zeros(value.shape, dtype=value.dtype))
    loader = on_device(study, cases, HeldImages(files, META), OrderedSampler(8, 4, 0, 1), META)
    logits, targets = predict_logits(build_model(study).to(META), loader, META)
    assert (logits.shape, targets.device.type) == ((8, 1), "cpu")
    build_loss(study, cases)(torch.from_numpy(logits).float(), targets)


def test_pretraining_takes_place_on_the_device(tiny_study: Callable[..., Study]) -> None:
    model = Embedder(meta_study(tiny_study, "binary", [16, 16])).to(META)
    first, second = (model(torch.empty(4, 1, 16, 16, device=META)) for _ in range(2))
    loss = vicreg(first, second)
    loss.backward()
    assert loss.device == META

"""How a training is carried out: what is decided and kept, and that it changes nothing of what is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medopt.config import Study, Training
from medopt.core.errors import ConfigError
from medopt.core.reporter import SilentReporter
from medopt.training import pace as pace_module
from medopt.training.checkpoint import read_tensors
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, Trained, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.pace import Pace, compiling_pays, decide, faster_way, settle, speed


@pytest.fixture
def job(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., TrainingJob]:
    def make(name: str = "run", **training: Any) -> TrainingJob:
        study = tiny_study(training=training)
        sets = tiny_set(tmp_path / "data", study, 12), tiny_set(tmp_path / "data", study, 8, "val", seed=1)
        return TrainingJob(study, *sets, tmp_path / name, {})

    return make


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The network is traced and guarded as ever, but no kernels are made of it, which takes minutes on a CPU.

    The list is what each compiling was called with.
    """
    compile_it, calls = torch.nn.Module.compile, []

    def compile_quickly(self: torch.nn.Module, **given: Any) -> None:
        calls.append({"backend": "eager", **given})
        compile_it(self, **calls[-1])

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    return calls


def trained(job: TrainingJob) -> tuple[Trained, dict[str, torch.Tensor]]:
    end = train(job, TrainingCallbacks(lambda logits, targets: float(logits.mean())))
    return end, read_tensors(end.weights)[0]


@pytest.mark.parametrize("ways", [{"residence": "device", "augment_on": "device"}, {"residence": "host"}])
def test_trainings_from_memory_and_from_files_end_with_the_same_bits(
    job: Callable[..., TrainingJob], ways: dict[str, str]
) -> None:
    plain, weights = trained(job("plain", mixup=0.3, ema_decay=0.9))
    other, found = trained(job("other", mixup=0.3, ema_decay=0.9, **ways))
    assert [one.train_loss for one in plain.history] == [one.train_loss for one in other.history]
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_how_it_is_trained_is_no_other_training(tiny_study: Callable[..., Study]) -> None:
    ways = {"residence": "host", "augment_on": "device", "compile": True, "workers": "auto"}
    assert tiny_study(training=ways).training_digest() == tiny_study(training={"workers": 0}).training_digest()
    assert tiny_study(training={"batch_size": 8}).training_digest() != tiny_study().training_digest()


def test_a_cpu_reads_files_augments_itself_and_compiles_nothing(job: Callable[..., TrainingJob]) -> None:
    one = job()
    found = decide(one, open_fabric(one.study.training), SilentReporter())
    assert found == Pace("disk", "cpu", False)
    assert found.of(one.study.training) == Training.model_validate(
        one.study.training.model_dump() | {"residence": "disk", "augment_on": "cpu", "compile": False}
    )


def test_what_was_decided_is_kept_for_the_run(job: Callable[..., TrainingJob]) -> None:
    one = job()
    fabric = open_fabric(one.study.training)
    _, first = settle(one, fabric, SilentReporter())
    note = one.folder / "pace.json"
    assert not note.exists()  # a CPU decides alike again
    one.folder.mkdir()
    note.write_text(json.dumps(asdict(first) | {"augment_on": "device", "reasons": ["timed"]}))
    again, kept = settle(one, fabric, SilentReporter())
    assert kept == replace(first, augment_on="device", reasons=("timed",))
    assert again.study.training.augment_on == "device" and again.study.training.residence == "disk"
    changed, other = settle(job(residence="host"), fabric, SilentReporter())
    assert changed.study.training.residence == other.residence == "host"
    note.write_text("{")  # cut off by a full disk
    assert settle(one, fabric, SilentReporter())[1] == first


def test_what_was_timed_is_written_down(job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch) -> None:
    one, timed = job(), Pace("host", "device", True, ("compiling: as timed",), {"compiled": 1.5})
    monkeypatch.setattr(pace_module, "decide", lambda *_: timed)
    fabric = open_fabric(one.study.training)
    assert settle(one, fabric, SilentReporter())[1] == timed
    monkeypatch.setattr(pace_module, "decide", lambda *_: pytest.fail("timed again"))
    assert settle(one, fabric, SilentReporter())[1] == timed


def test_images_that_do_not_fit_where_they_were_asked_for_are_refused(
    job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "available_bytes", lambda: 100)
    one = job(residence="host")
    with pytest.raises(ConfigError, match=r"training\.residence is host"):
        settle(one, open_fabric(one.study.training), SilentReporter())


def test_the_faster_way_to_augment_is_taken_and_said() -> None:
    assert faster_way({"device": 500.0, "cpu": 1500.0}) == (
        "cpu",
        "augmenting on the CPU: 3.0x (1500 images/s, on the GPU 500)",
    )
    assert faster_way({"device": 500.0, "cpu": 500.0})[0] == "device"


@pytest.mark.parametrize(
    ("plain", "compiled", "first", "left", "pays"),
    [(100, 0, 0, 599, False), (100, 200, 60, 7200, True), (100, 102, 60, 7200, False), (100, 110, 90, 700, False)],
)
def test_a_network_is_compiled_where_that_saves_time(
    plain: float, compiled: float, first: float, left: float, pays: bool
) -> None:
    assert compiling_pays(plain, compiled, first, left)[0] is pays


@pytest.mark.usefixtures("quick_compiler")
def test_on_a_gpu_ways_are_timed_with_the_real_data(
    job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision's own steps, on a CPU in the GPU's place; the speeds are real, then those of a long training."""
    one = job(epochs=10**6)
    monkeypatch.setattr(pace_module, "speed", lambda *given: speed(*given, seconds=0.0))
    plan = pace_module._timed(one, Pace("device", "cpu", False), SilentReporter(), torch.device("cpu"))
    assert set(plan.measured) == {"augmenting on the GPU", "augmenting on the CPU", "not compiled", "compiled"}
    assert all(value > 0 for value in plan.measured.values())
    assert plan.residence == ("device" if plan.augment_on == "device" else "disk")
    assert plan.reasons[0].startswith("augmenting on the ") and "compiling" in plan.reasons[1]


def test_images_that_the_study_puts_on_the_device_are_changed_there(job: Callable[..., TrainingJob]) -> None:
    one = job(residence="device", compile=False)
    plan = pace_module._timed(one, Pace("device", "cpu", False), SilentReporter(), torch.device("cpu"))
    assert plan == Pace("device", "device", False)


def test_a_compiled_network_learns_the_same(
    job: Callable[..., TrainingJob], quick_compiler: list[dict[str, Any]]
) -> None:
    """Six epochs of three steps: compiled once the running statistics have settled, after 11; validation is not."""
    settings: dict[str, Any] = {"epochs": 6, "optimizer": {"lr": 0.003}}
    plain, weights = trained(job("plain", **settings))
    other, found = trained(job("compiled", compile=True, **settings))
    losses = [[one.train_loss for one in end.history] for end in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert weights.keys() == found.keys()
    assert quick_compiler == [{"backend": "eager", "dynamic": False}]

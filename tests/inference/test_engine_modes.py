"""Engines opened for throughput, accelerators that are not there, and the trial that chooses a setting."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from medopt.core.errors import ReleaseError
from medopt.inference.engines import DEVICES, ENGINES, PROVIDERS, load_batch, open_engine, openvino_core
from medopt.inference.latency import measure_latency
from medopt.inference.runtime import MeasuredSetting, Setting, candidates, choose, run_trial


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("threads", [0, 1])
def test_throughput_gives_the_same_logits(name: str, kind: str, threads: int, tiny_models: SimpleNamespace) -> None:
    images = load_batch(tiny_models.val.files[:7])
    path = getattr(tiny_models, kind)
    alone, many = open_engine(name, path, 1), open_engine(name, path, threads, "throughput")
    for count in (7, 1, 4):  # more than the streams, fewer, and again
        wanted = alone.run_both(images[:count])
        for found, expected in zip(many.run_both(images[:count]), wanted, strict=True):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(many.run(images[:count]), wanted[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "package"), [("onnxruntime-cuda", "onnxruntime-gpu"), ("onnxruntime-tensorrt", "tensorrt")]
)
def test_accelerator_that_is_not_there_says_what_brings_it(
    name: str, package: str, tiny_models: SimpleNamespace
) -> None:
    if PROVIDERS[name].provider in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {PROVIDERS[name].provider}")
    with pytest.raises(ReleaseError, match=f"{name} is not available here.*Install.*{package}"):
        open_engine(name, tiny_models.float)


@pytest.mark.parametrize(("name", "device"), DEVICES.items())
def test_intels_accelerator_that_is_not_there_says_what_is(
    name: str, device: str, tiny_models: SimpleNamespace
) -> None:
    if any(found.startswith(device) for found in openvino_core().available_devices):
        pytest.skip(f"OpenVINO finds a {device}")
    with pytest.raises(ReleaseError, match=f"{name} is not available here: OpenVINO finds no {device} .it finds CPU"):
        open_engine(name, tiny_models.float)


def test_accelerator_without_a_device_is_refused_not_replaced(
    tiny_models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime falls back to the CPU in silence where a provider is built in and finds no device."""
    present = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    with pytest.raises(ReleaseError, match="onnxruntime-cuda"):
        open_engine("onnxruntime-cuda", tiny_models.float)


def test_candidates_are_one_thread_and_all_cores_of_each_engine() -> None:
    tried = candidates(["onnxruntime", "openvino"], 4, (1, 8))
    assert [(one.engine, one.threads, one.batch) for one in tried["latency"]] == [
        ("onnxruntime", 1, 1), ("onnxruntime", 4, 1), ("openvino", 1, 1), ("openvino", 4, 1),
    ]  # fmt: skip
    assert all(one.mode == "latency" for one in tried["latency"])
    many = tried["throughput"]
    assert len(many) == len(set(many)) and {one.batch for one in many} == {1, 8}
    assert {one.mode for one in many if one.engine == "onnxruntime"} == {"throughput"}
    assert {one.mode for one in many if one.engine == "openvino"} == {"latency", "throughput"}
    assert {one.threads for one in candidates(["openvino"], 1)["throughput"]} == {1}


def measured(speed: float, batch: int, threads: int) -> MeasuredSetting:
    setting = Setting(engine="openvino", mode="throughput", threads=threads, batch=batch)
    return MeasuredSetting(setting=setting, milliseconds=1000 * batch / speed, images_per_second=speed)


def test_smallest_of_those_as_fast_as_the_fastest_is_chosen() -> None:
    rows = [measured(80, 1, 1), measured(98, 4, 2), measured(98.5, 4, 1), measured(100, 16, 2)]
    assert choose(rows) == rows[2].setting
    assert choose([*rows, measured(200, 16, 2)]).batch == 16


def test_trial_measures_every_setting_and_chooses_one_for_each_goal(tiny_models: SimpleNamespace) -> None:
    tried = candidates(list(ENGINES), 1, (1, 4))
    found = run_trial(tiny_models.int8, tried, np.load(tiny_models.val.files[0]), 0.1)
    assert {goal: [one.setting for one in rows] for goal, rows in found.measured.items()} == tried
    assert found.latency in tried["latency"] and found.throughput in tried["throughput"]
    for rows in found.measured.values():
        for one in rows:
            assert one.milliseconds > 0
            assert one.images_per_second == pytest.approx(1000 * one.setting.batch / one.milliseconds)


def test_pause_is_not_part_of_the_time() -> None:
    begun = time.perf_counter()
    found = measure_latency({"nothing": lambda: None}, rounds=3, warmup=0, pause=0.05)
    assert found["nothing"] < 20 and time.perf_counter() - begun > 0.15

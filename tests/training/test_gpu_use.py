"""How busy a GPU is, by a stand-in for nvidia-smi."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medopt.core.records import EpochRecord
from medopt.tracking.tracker import _epoch_metrics
from medopt.training.gpu_use import peak_gib, watched_utilisation

SMI = """#!/bin/sh
echo "$@" > {folder}/asked
printf '80\\n[N/A]\\n100\\n'
touch {folder}/sampled
exec sleep 60
"""


def test_samples_are_those_of_the_device_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"abc-{device.index}"))
    with watched_utilisation(torch.device("cuda", 1)) as samples:
        deadline = time.monotonic() + 30
        while not (tmp_path / "sampled").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert samples == []
    assert samples == [0.8, 1.0]
    assert "-i GPU-abc-1" in (tmp_path / "asked").read_text()


def test_without_a_gpu_nothing_is_asked_and_nothing_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_utilisation(torch.device("cpu")) as samples:
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with watched_utilisation(torch.device("cuda", 0)) as others:
        pass
    assert samples == others == [] and peak_gib(torch.device("cpu")) is None
    record = EpochRecord(0, 1.0, 0.5, 0.5, 1e-3, 100.0, 1.0, 0.01)
    names = {metric.key for metric in _epoch_metrics(record, "curves/auc_val")}
    busy = EpochRecord(0, 1.0, 0.5, 0.5, 1e-3, 100.0, 1.0, 0.01, gpu_use=0.9, gpu_gib=20.0)
    values = {metric.key: metric.value for metric in _epoch_metrics(busy, "curves/auc_val")}
    assert (
        values.keys() - names == {"epoch/gpu_utilisation", "epoch/gpu_gib"} and values["epoch/gpu_utilisation"] == 0.9
    )

"""Training on XLA's own CPU device equals training on torch's; without torch_xla one clear error.

The long test makes an environment with torch 2.9 and torch_xla 2.9 (4 GB) beside this one; MEDOPT_XLA_PYTHON names the
interpreter of one that is there already.
"""

from __future__ import annotations

import copy
import json
import os
import site
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from isolation import STARTED_WITH
from torch import Tensor, nn

from medopt.config import Training
from medopt.core.errors import ConfigError
from medopt.training.hardware import open_fabric
from medopt.training.xla import correct_running_variances, open_xla, remembers_biased_variance

TRAIN = """
import json, sys
from contextlib import suppress
from pathlib import Path
import numpy as np
from medopt.config import Study
from medopt.core.records import Case
from medopt.pipeline.predict import validation_score
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.loop import fit

folder, ways = Path(sys.argv[1]), json.loads(sys.argv[2])
random, files, cases = np.random.default_rng(0), [], []
for at in range(40):
    image = random.random((1, 16, 16), dtype=np.float32)
    image[:, :, : 8 * (at % 2)] *= 0.5
    files.append(folder / f"{at}.npy")
    np.save(files[-1], np.rint(image * 65535).astype(np.uint16))
    cases.append(Case(str(at), str(at), files[-1].name, (at % 2,), "train"))
train, val = PreparedSplit(cases[:32], files[:32]), PreparedSplit(cases[32:], files[32:])
told = {}
for name, accelerator, last in ways:
    study = Study.model_validate({
        "name": "x", "question": "Is it?", "data": {"manifest": "m.csv", "labels": ["a", "b"]},
        "prepare": {"size": [16, 16]}, "model": {"depth": 14, "width": 0.125},
        "training": {
            "epochs": 5, "batch_size": 8, "accelerator": accelerator, "schedule": {"name": "constant"},
            "optimizer": {"name": "sgd", "lr": 0.01}, "keep": "last",
        },
    })
    job, score, histories = TrainingJob(study, train, val, folder / name, {}), validation_score(study, val), []

    def cut(history):  # the epoch's checkpoint is on the disk
        histories.append([[one.train_loss, one.val_loss] for one in history])
        if len(history) == last:
            raise InterruptedError

    fabric = open_fabric(study.training)
    with suppress(InterruptedError):
        fit(job, fabric, TrainingCallbacks(score, cut))
    told[f"{name} {last}"] = [fabric.device.type, len(histories[0]), histories[-1]]
print(json.dumps(told))
"""


@pytest.mark.skipif(find_spec("torch_xla") is not None, reason="torch_xla is installed here")
def test_without_torch_xla_one_error_says_what_to_install() -> None:
    with pytest.raises(
        ConfigError, match=r"torch_xla is not installed\. Install it with the torch of the same version"
    ):
        open_fabric(Training(accelerator="tpu"))


@pytest.mark.parametrize(("precision", "devices", "said"), [("bf16-mixed", 1, "32-true only"), ("auto", 2, "give one")])
def test_what_xla_does_not_do_here_is_refused(
    precision: str, devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medopt.training.xla.find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=said):
        open_xla(precision, devices)


class Biased(nn.BatchNorm2d):
    """Remembers the variance over n values, not over n - 1, as XLA's own batch normalization does."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_var is not None and self.momentum is not None
        count, before = x.numel() // x.shape[1], self.running_var.clone()
        out = super().forward(x)
        if self.training:
            part = self.running_var - (1 - self.momentum) * before
            self.running_var -= part / count
        return out


def test_a_biased_running_variance_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medopt.training.xla.remembers_biased_variance", lambda device: True)
    right, wrong, corrected = nn.BatchNorm2d(3), Biased(3), Biased(3)
    model = nn.Sequential(corrected)
    correct_running_variances(model, torch.device("xla"))
    for momentum in (1.0, 0.5, 0.1, 0.0):
        x = torch.rand(4, 3, 1, 2, generator=torch.Generator().manual_seed(round(10 * momentum)))
        for norm in (right, wrong, corrected):
            norm.momentum = momentum
        for one in (right, wrong, model, copy.deepcopy(model).eval()):
            one(x)
    torch.testing.assert_close(corrected.state_dict(), right.state_dict())
    assert not torch.allclose(wrong.running_var, right.running_var, rtol=0.05)


def test_torch_itself_remembers_the_unbiased_variance() -> None:
    assert not remembers_biased_variance(torch.device("cpu"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with torch 2.9 and torch_xla 2.9, and all else from this environment."""
    if given := STARTED_WITH.get("MEDOPT_XLA_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("xla")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "pip", "install", "-q", "torch==2.9.0", "torch_xla==2.9.0"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if "connection" in done.stderr.lower() or "No matching distribution" in done.stderr:
        pytest.skip("no package registry with torch_xla 2.9 answers here")
    assert done.returncode == 0, done.stderr
    (own,) = folder.glob("lib/*/site-packages")
    (own / "zz_medopt.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin" / "python"


@pytest.mark.long
def test_twenty_steps_on_xla_are_those_of_the_cpu_and_a_cut_training_goes_on(python: Path, tmp_path: Path) -> None:
    # torch's autograd counts the devices at its first step: XLA has to be there by then
    ways = [["whole", "tpu", 5], ["cut", "tpu", 3], ["cut", "tpu", 5], ["cpu", "cpu", 5]]
    root = Path(__file__).parents[2]
    alone = os.environ | {"PJRT_DEVICE": "CPU", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [python, "-c", TRAIN, tmp_path, json.dumps(ways)]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    (cpu, _, wanted), (device, _, found), (_, resumed_at, cut) = told["cpu 5"], told["whole 5"], told["cut 5"]
    assert (cpu, device, len(wanted), len(told["cut 3"][2]), resumed_at) == ("cpu", "xla", 5, 3, 3)
    for one, other, tolerance in zip(wanted, found, (1e-5, 1e-4, 1e-4, 1e-2, 1e-2), strict=True):
        assert other == pytest.approx(one, rel=tolerance)  # rounding grows about tenfold in each epoch of 4 steps
    assert cut == [pytest.approx(one, rel=1e-5) for one in found]

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medopt.core.errors import ReleaseError
from medopt.inference.engines import ENGINES, load_batch, open_engine, run_files

NAMES = list(ENGINES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [0, 1])
def test_an_engine_gives_torchs_logits(name: str, threads: int, tiny_models: SimpleNamespace) -> None:
    images = load_batch(tiny_models.val.files[:5])
    with torch.inference_mode():
        expected = tiny_models.model(torch.from_numpy(images)).double().numpy()
    engine = open_engine(name, tiny_models.float, threads)
    found = engine.run(images)
    assert engine.name == name and found.dtype == np.float64 and found.shape == (5, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected) > 0.1  # that the images are told apart at all


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_any_size_gives_the_same_rows(name: str, kind: str, tiny_models: SimpleNamespace) -> None:
    engine = open_engine(name, getattr(tiny_models, kind), 1)
    images = load_batch(tiny_models.val.files[:7])
    whole = engine.run(images)
    np.testing.assert_allclose(np.concatenate([engine.run(images[k : k + 1]) for k in range(7)]), whole, atol=1e-4)
    np.testing.assert_allclose(run_files(engine, tiny_models.val.files[:7], size=3), whole, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_results_of_one_run_survive_the_next(name: str, tiny_models: SimpleNamespace) -> None:
    engine = open_engine(name, tiny_models.float)
    first = engine.run(load_batch(tiny_models.val.files[:2]))
    kept = first.copy()
    engine.run(load_batch(tiny_models.val.files[2:4]))
    np.testing.assert_array_equal(first, kept)


def test_an_unknown_engine_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"no engine 'tensorflow'; known: onnxruntime, openvino"):
        open_engine("tensorflow", tmp_path / "a.onnx")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"no model" * 99, None],
    ids=["cut off", "empty", "rubbish", "missing"],
)
def test_a_broken_file_is_refused_by_name_in_one_paragraph(
    name: str, damage: Callable[[bytes], bytes] | None, tiny_models: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "broken.onnx"
    if damage:
        path.write_bytes(damage(tiny_models.float.read_bytes()))
    with pytest.raises(ReleaseError, match=rf"{name} cannot load broken\.onnx") as refused:
        open_engine(name, path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


SIGNALLED = """
import gc, signal, subprocess, sys
from pathlib import Path
from medopt.inference.engines import open_engine
first, second = (open_engine("openvino", Path(sys.argv[1]), 1) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda number, frame: print("heard"))
subprocess.run(["true"], check=True)
"""


def test_a_signal_after_two_openvino_engines_have_gone_does_not_end_the_process(tiny_models: SimpleNamespace) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(tiny_models.float)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr

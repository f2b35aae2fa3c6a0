"""Where int8 loses too much, the layers that harm most are left in float, as few as the gate passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from medopt.compression.mixed_precision import int8_layers
from medopt.core.reporter import SilentReporter
from medopt.pipeline.stages.judge import judge_models

FAST = {"min_speedup": 0, "max_size_ratio": 1, "max_decision_flips": 0.1, "max_probability_shift": 0.05} | {
    "flips_bound": 0.5,
    "auc_bound": 0.5,
}


@pytest.fixture
def damaged(tiny_models: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A run's models with one layer of the int8 file damaged."""
    model = onnx.load(tiny_models.int8)
    name = int8_layers(model)[3]
    made_by = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == name)
    scale = next(item for item in model.graph.initializer if item.name == made_by[node.input[1]].input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(8), scale.name))
    onnx.save(model, tmp_path / "quantized.onnx")
    shutil.copyfile(tiny_models.float, tmp_path / "float.onnx")
    return SimpleNamespace(layer=name, models=tmp_path)


def judge(tiny_models: SimpleNamespace, models: Path, **gate: Any) -> Any:
    compression = tiny_models.study.compression.model_copy(
        update={"gate": tiny_models.study.compression.gate.model_copy(update=FAST | gate), "threads": 1}
    )
    study = tiny_models.study.model_copy(update={"compression": compression})
    weights = [tiny_models.float.parent / "best.safetensors"]
    return judge_models(study, tiny_models.val, weights, models, tiny_models.train.files, SilentReporter())


def test_the_harmful_layer_goes_back_to_float(tiny_models: SimpleNamespace, damaged: SimpleNamespace) -> None:
    judged = judge(tiny_models, damaged.models)
    assert judged.verdict.passed and judged.in_float == (damaged.layer,)
    left = int8_layers(onnx.load(damaged.models / "int8.onnx"))
    assert damaged.layer not in left and len(left) == len(int8_layers(onnx.load(damaged.models / "quantized.onnx"))) - 1


def test_without_mending_it_is_refused(tiny_models: SimpleNamespace, damaged: SimpleNamespace) -> None:
    judged = judge(tiny_models, damaged.models, mend=False)
    assert not judged.verdict.passed and judged.in_float == ()
    assert any("decisions flip" in reason or "probabilities move" in reason for reason in judged.verdict.reasons)


def test_what_is_only_slow_is_not_mended(tiny_models: SimpleNamespace, tmp_path: Path) -> None:
    for name, path in (("quantized.onnx", tiny_models.int8), ("float.onnx", tiny_models.float)):
        shutil.copyfile(path, tmp_path / name)
    judged = judge(tiny_models, tmp_path, min_speedup=1000)
    assert not judged.verdict.passed and judged.in_float == ()
    assert all("not faster" in reason for reason in judged.verdict.reasons)

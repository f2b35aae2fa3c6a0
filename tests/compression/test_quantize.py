from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from scipy.special import expit

from medopt.compression.quantize import choose_calibration, quantize_int8
from medopt.inference.engines import ENGINES, open_engine, run_files


@pytest.fixture(scope="module")
def int8(tiny_models: SimpleNamespace) -> onnx.ModelProto:
    return onnx.load(tiny_models.int8)


@pytest.mark.parametrize("name", list(ENGINES))
def test_the_int8_model_decides_as_the_float_model_does(name: str, tiny_models: SimpleNamespace) -> None:
    before, after = (
        run_files(open_engine(name, path, 1), tiny_models.val.files) for path in (tiny_models.float, tiny_models.int8)
    )
    assert not np.array_equal(before, after)
    assert np.abs(expit(before) - expit(after)).mean() < 0.05
    assert ((before > np.median(before)) == (after > np.median(before))).mean() > 0.9
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] > 0.98


def test_the_file_is_less_than_half_as_large(tiny_models: SimpleNamespace) -> None:
    assert tiny_models.int8.stat().st_size < 0.5 * tiny_models.float.stat().st_size


def test_all_but_the_first_convolution_and_the_classifier_are_int8(int8: onnx.ModelProto) -> None:
    made_by = {name: node for node in int8.graph.node for name in node.output}
    convolutions = [node for node in int8.graph.node if node.op_type == "Conv"]
    kinds = [getattr(made_by.get(node.input[1]), "op_type", "float") for node in convolutions]
    assert kinds[0] == "float" and set(kinds[1:]) == {"DequantizeLinear"} and len(kinds) > 20
    gemm = next(node for node in int8.graph.node if node.op_type == "Gemm")
    assert gemm.input[1] not in made_by


def test_weights_keep_a_bit_of_headroom_for_processors_that_saturate(int8: onnx.ModelProto) -> None:
    values = {item.name: item for item in int8.graph.initializer}
    quantized = [
        numpy_helper.to_array(values[node.input[0]]).astype(int)
        for node in int8.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values
    ]
    weights = [array for array in quantized if array.ndim == 4]
    assert len(weights) > 20
    assert max(array.max() for array in weights) <= 64 and min(array.min() for array in weights) >= -64


def test_the_same_images_give_the_same_model(tiny_models: SimpleNamespace, tmp_path: Path) -> None:
    images = [np.load(path) for path in tiny_models.train.files[:16]]
    quantize_int8(tiny_models.float, tmp_path / "again.onnx", images)
    batch = np.stack(images)
    one, two = (open_engine("onnxruntime", path, 1).run(batch) for path in (tiny_models.int8, tmp_path / "again.onnx"))
    np.testing.assert_array_equal(one, two)


def test_nothing_is_written_where_calibration_fails(tiny_models: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        quantize_int8(tiny_models.float, tmp_path / "a.onnx", [np.zeros((1, 3, 3, 3), np.float32)])
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_follow_from_the_seed() -> None:
    chosen = choose_calibration(100, 20, seed=3)
    assert chosen == choose_calibration(100, 20, seed=3) != choose_calibration(100, 20, seed=4)
    assert len(set(chosen)) == 20 and chosen == sorted(chosen) and set(chosen) <= set(range(100))
    assert choose_calibration(5, 20, seed=0) == [0, 1, 2, 3, 4]

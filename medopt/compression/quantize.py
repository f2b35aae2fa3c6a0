"""Static int8 after training: one portable QDQ ONNX file for ONNX Runtime and OpenVINO.

The tools' defaults keep 93 % of the decisions where this recipe keeps 99 %: ranges by minimum and maximum, no bias
correction, the first convolution and the classifier left in float, and 7-bit weights' headroom (`overflow_fix`),
without which processors that lack VNNI saturate and are wrong. On BreastMNIST the float first convolution alone takes a
quarter off the error of the logits: every rounding of the pixels themselves is carried through the whole network.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import nncf
import numpy as np
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from medopt.inference.engines import INPUT
from medopt.provenance import atomic
from medopt.records import FloatArray


def quantize_int8(source: Path, target: Path, calibration: Sequence[FloatArray]) -> None:
    """Write the int8 form of the float ONNX file `source` to `target`.

    `calibration` holds prepared training images (C, *size) at the size of deployment; they are read one at a time.
    """
    model = onnx.load(source)
    data = nncf.Dataset(range(len(calibration)), lambda index: {INPUT: np.array(calibration[index])[None]})
    parameters = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE,
        disable_bias_correction=True,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        quantized = nncf.quantize(
            model,
            data,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=[first], types=["Gemm"]),
            advanced_parameters=parameters,
        )
    with atomic(target) as part:
        onnx.save(quantized, part)


def choose_calibration(count: int, wanted: int, seed: int) -> list[int]:
    """Which of `count` training images calibrate: `wanted` of them at random, in a fixed order."""
    picked = np.random.default_rng(seed).permutation(count)[:wanted]
    return sorted(int(index) for index in picked)

"""Whether this machine can run what a profile was made for, without a number coming out otherwise."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnxruntime

from medopt.config import Profile

_VNNI = {"avx512_vnni", "avx_vnni", "asimddp"}  # the last is 64-bit Arm's, whose sums do not saturate either


@cache
def processor_flags() -> frozenset[str]:
    """What the processor says that it can do; nothing where that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(
        word
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    )


def unfit(profile: Profile) -> str:
    """Why this machine is not one of the profile's; empty where it is.

    Processors without VNNI add products of 8-bit weights in 16 bits and saturate: errors of a third of a layer's
    output were measured, with no message.
    """
    if profile == "cpu-vnni" and not processor_flags() & _VNNI:
        return "this processor has no VNNI, and would saturate in the products of 8-bit weights"
    if profile == "cuda-tensorrt" and "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        return "ONNX Runtime has no TensorRT here (package onnxruntime-gpu, and an NVIDIA GPU)"
    return ""

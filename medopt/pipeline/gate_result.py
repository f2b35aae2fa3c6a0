"""What validation decided on a run's models."""

from __future__ import annotations

from pydantic import Field

from medopt.core.result import Result
from medopt.evaluation.gate_verdict import GateVerdict
from medopt.metrics.calibration import Calibration
from medopt.metrics.numbers import Margin
from medopt.metrics.thresholds import OperatingPoint


class GateResult(Result):
    """Calibration, operating point and engines of each model, and the gate's verdict.

    `in_float` names the layers of the int8 model that compute in float. `shift` is what class weights and balanced
    sampling are known to have added to each output's logits. `margins` say how far a regression study's number may be
    from the truth.
    """

    calibrations: dict[str, Calibration]
    points: dict[str, OperatingPoint]
    engines: dict[str, list[str]]
    latency_ms: dict[str, float]
    verdict: GateVerdict
    in_float: tuple[str, ...] = ()
    shift: tuple[float, ...] = ()
    margins: dict[str, Margin] = Field(default_factory=dict)

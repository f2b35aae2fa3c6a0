"""What validation decided on a run's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medopt.core.records import GateVerdict
from medopt.metrics.calibration import Calibration
from medopt.metrics.thresholds import OperatingPoint


@dataclass(frozen=True, slots=True)
class GateResult:
    """What validation decided: calibration, operating point and engines of each model, and the gate's verdict.

    `in_float` names the layers of the int8 model that compute in float.
    """

    calibrations: dict[str, Calibration]
    points: dict[str, OperatingPoint]
    engines: dict[str, list[str]]
    latency_ms: dict[str, float]
    verdict: GateVerdict
    in_float: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> GateResult:
        """From JSON."""
        verdict = facts["verdict"]
        return cls(
            {kind: Calibration.from_dict(fit) for kind, fit in facts["calibrations"].items()},
            {kind: OperatingPoint.from_dict(point) for kind, point in facts["points"].items()},
            facts["engines"],
            facts["latency_ms"],
            GateVerdict(verdict["passed"], tuple(verdict["reasons"]), verdict["figures"]),
            tuple(facts["in_float"]),
        )

"""`front.json`: every width and precision that `medopt compress` tried, measured on validation."""

from __future__ import annotations

from typing import Literal

from medopt.core.records import Estimate
from medopt.core.result import Result

Precision = Literal["float32", "float16", "int8-weights", "int4-weights", "int8"]


class CompressionOption(Result):
    """One form of the model in the engine that runs it fastest, against the float network.

    `removed` is the share of the multiply-adds that pruning took away; `faults` is what the gate says against it.
    """

    name: str
    precision: Precision
    removed: float
    multiply_adds: int
    size_bytes: int
    engine: str
    latency_ms: float
    speedup_over_torch: float
    auc: Estimate
    auc_difference: Estimate
    decision_flips: Estimate
    probability_shift: Estimate
    largest_shift: float
    faults: tuple[str, ...]


class CompressionFront(Result):
    """All options, the names of those that no other beats (`front`, the fastest first), and the one that was chosen.

    `against` says for each option that the rule does not allow why; `chosen` is None where it allows none.
    """

    rule: str
    confidence: float
    validation_cases: int
    options: tuple[CompressionOption, ...]
    front: tuple[str, ...]
    chosen: str | None
    against: dict[str, tuple[str, ...]]
    torch_ms: float

    @property
    def choice(self) -> CompressionOption | None:
        """The option that was chosen."""
        return next((option for option in self.options if option.name == self.chosen), None)

"""What the gate says of an int8 model: passed or not, why, and the figures it judged by, all on validation."""

from __future__ import annotations

from typing import Annotated

from medopt.config import Gate
from medopt.core.records import Estimate, Override
from medopt.core.result import WITH_DEFAULTS, Result


class EngineFigures(Result):
    """An int8 model in one engine against the float model in the fastest one.

    `decision_flips` is the share of decisions that change, `probability_shift` the mean and `largest_shift` the largest
    change of a probability. Times are medians at batch 1 in milliseconds; `size_ratio` is the file over the float file.
    """

    auc_difference: Estimate
    decision_flips: Estimate
    probability_shift: Estimate
    largest_shift: float
    latency_ms: float
    float_ms: float
    size_ratio: float
    speedup: float


class GateFigures(Result):
    """What the gate judged by. `engine` is the fastest one that passed, or the fastest of all where none did."""

    engine: str
    engines_passed: tuple[str, ...]
    engines_refused: tuple[str, ...]
    auc_float: float | None
    auc_int8: float | None
    limits: Annotated[Gate, WITH_DEFAULTS]
    engines: dict[str, EngineFigures]

    @property
    def chosen(self) -> EngineFigures:
        """The figures of `engine`."""
        return self.engines[self.engine]


class GateVerdict(Result):
    """Whether the int8 model passed, and each reason why not."""

    passed: bool
    reasons: tuple[str, ...]
    figures: GateFigures


class GateRecord(GateVerdict):
    """The verdict on the model of a run: `in_float` names its layers that compute in float, `override` who released it
    although the gate refused it.
    """

    in_float: tuple[str, ...]
    override: Override | None

    @property
    def outcome(self) -> str:
        """How the run ended, in a word."""
        return "released" if self.passed else "released against the gate" if self.override else "gate refused"

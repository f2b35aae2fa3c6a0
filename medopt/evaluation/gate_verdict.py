"""What the gate says of an int8 model: passed, refused or cannot tell, why, and the figures it judged by.

All of them are of validation.
"""

from __future__ import annotations

from typing import Annotated, Literal

from medopt.config import Gate
from medopt.core.format import format_share
from medopt.core.records import Estimate, Override
from medopt.core.result import WITH_DEFAULTS, Result

Outcome = Literal["passed", "refused", "cannot tell"]


class ShiftedCase(Result):
    """The validation case whose probability moved most: from `before` (float) to `after` (int8)."""

    case_id: str
    before: float
    after: float

    @property
    def sentence(self) -> str:
        """In words, for whoever looks at that case."""
        points = 100 * abs(self.after - self.before)
        if points < 0.5:
            return "largest shift: no probability of a validation case moves by half a point"
        return (
            f"largest shift: a probability of validation case {self.case_id} moves by {points:.0f} points "
            f"({self.before:.2f} to {self.after:.2f}): look at that case"
        )


class EngineFigures(Result):
    """An int8 model in one engine against the float model in the fastest one.

    `decision_flips` is the share of decisions that change, `probability_shift` the mean and `largest_shift` the largest
    change of a probability: that of the case `shifted` (None in version 0.1.0). Times are medians at batch 1 in
    milliseconds; `size_ratio` is the file over the float file. `error_change` is of a number: by how many standard
    deviations of the truth its mean absolute error grows.
    """

    auc_difference: Estimate
    decision_flips: Estimate
    probability_shift: Estimate
    largest_shift: float
    latency_ms: float
    float_ms: float
    size_ratio: float
    speedup: float
    shifted: ShiftedCase | None = None
    error_change: Estimate | None = None


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
    """What the gate says: `reasons` name each criterion that was not passed, with its limit.

    `undecided`: it did not pass, and the cases are too few to refuse it. `nearest` is the criterion that came nearest
    to its limit in the engine that passed ("" in version 0.1.0).
    """

    passed: bool
    reasons: tuple[str, ...]
    figures: GateFigures
    undecided: bool = False
    nearest: str = ""

    @property
    def outcome(self) -> Outcome:
        """In a word."""
        return "passed" if self.passed else "cannot tell" if self.undecided else "refused"

    @property
    def decided_by(self) -> str:
        """The criteria that decided, with their limits."""
        if not self.passed:
            return "; ".join(self.reasons)
        flips = format_share(self.figures.chosen.decision_flips)
        return f"nearest to its limit: {self.nearest}" if self.nearest else f"{flips} of the decisions flip"


class GateRecord(GateVerdict):
    """The verdict on the int8 model of a run: `in_float` names its layers that compute in float.

    `override` is who released the model although a verdict did not pass it: the gate's, or that on the model itself.
    """

    in_float: tuple[str, ...]
    override: Override | None

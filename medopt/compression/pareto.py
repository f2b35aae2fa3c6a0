"""What accuracy costs in time and size: the options that no other beats, and the one that a rule picks among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medopt.compression.gate import TOO_FEW, GateMeasurement
from medopt.core.records import Estimate
from medopt.evaluation.compression_front import CompressionOption, Precision

Aim = Literal["fastest", "smallest"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form of the model, in the engine that runs it fastest, measured on validation.

    `removed` is the share of the multiply-adds that pruning took away. `candidate` holds what the gate looks at;
    `faults` what it says against it.
    """

    name: str
    precision: Precision
    removed: float
    multiply_adds: int
    size_bytes: int
    auc: Estimate
    candidate: GateMeasurement
    faults: tuple[str, ...]
    torch_ms: float

    @property
    def latency_ms(self) -> float:
        """Median time of one image."""
        return self.candidate.latency_ms

    @property
    def record(self) -> CompressionOption:
        """What is kept of it."""
        measured = self.candidate
        return CompressionOption(
            name=self.name,
            precision=self.precision,
            removed=self.removed,
            multiply_adds=self.multiply_adds,
            size_bytes=self.size_bytes,
            engine=measured.engine,
            latency_ms=self.latency_ms,
            speedup_over_torch=self.torch_ms / self.latency_ms,
            auc=self.auc,
            auc_difference=measured.auc_difference,
            decision_flips=measured.disagreement.decision_flips,
            probability_shift=measured.disagreement.probability_shift,
            largest_shift=measured.disagreement.largest_shift,
            faults=self.faults,
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """The fastest, or smallest, int8 model that passes the gate and loses no more than `within` of the AUC."""

    aim: Aim = "fastest"
    within: float = 0.005

    def describe(self) -> str:
        """In words."""
        return f"the {self.aim} int8 model within {self.within:g} AUC of the float model that passes the gate"


def on_front(options: Sequence[Candidate]) -> list[Candidate]:
    """The options that no other equals or beats in both AUC and time, one of them strictly (Pareto); fastest first."""
    known = [one for one in options if one.auc.value is not None]
    return sorted(
        (one for one in known if not any(_beats(other, one) for other in known)), key=lambda one: one.latency_ms
    )


def _beats(candidate: Candidate, other: Candidate) -> bool:
    better = (candidate.auc.value or 0.0) - (other.auc.value or 0.0)
    faster = other.latency_ms - candidate.latency_ms
    return better >= 0 and faster >= 0 and (better > 0 or faster > 0)


def pick(options: Sequence[Candidate], rule: Rule) -> Candidate | None:
    """What the rule chooses; None where nothing is allowed."""
    allowed = [one for one in options if not reasons_against(one, rule)]
    by = (lambda one: one.latency_ms) if rule.aim == "fastest" else (lambda one: one.size_bytes)
    return min(allowed, key=by, default=None)


def reasons_against(option: Candidate, rule: Rule) -> list[str]:
    """Why the rule does not allow an option; empty where it does."""
    if option.precision != "int8":
        return ["a release is int8"]
    loss = option.candidate.auc_difference.value
    if loss is None:  # the gate, which cannot tell either, says why
        return list(option.faults) or [f"the AUC difference is not defined: {TOO_FEW} rule out {rule.within:g}"]
    if not loss >= -rule.within:
        return [f"the AUC falls by {-loss:.4f}, more than {rule.within:g}", *option.faults]
    return list(option.faults)

"""The gate: a compressed model passes only if it is as good as the float model *and* faster, judged on validation.

Accuracy alone is not enough: a badly quantized model can look better on a small set while a third of its decisions
changed. So the gate looks at the same cases' decisions and probabilities, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medopt.config import Gate
from medopt.core.errors import DataError
from medopt.core.records import Estimate
from medopt.evaluation.gate_verdict import EngineFigures, GateFigures, GateVerdict
from medopt.evaluation.validation_fit import CrossFittedDecisions
from medopt.metrics.bootstrap import estimates
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import Floats, Weights


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How two models answer the same cases: share of decisions that flip, mean and largest change of a probability."""

    decision_flips: Estimate
    probability_shift: Estimate
    largest_shift: float


@dataclass(frozen=True, slots=True)
class GateMeasurement:
    """What was measured of one compressed model in one engine, against the float model.

    Latencies are medians at batch 1 of interleaved runs, in milliseconds; `float_ms` is the fastest float engine's.
    """

    engine: str
    auc_difference: Estimate
    disagreement: Disagreement
    latency_ms: float
    float_ms: float
    size_ratio: float

    @property
    def speedup(self) -> float:
        """How many times faster than the fastest float engine."""
        return self.float_ms / self.latency_ms

    @property
    def figures(self) -> EngineFigures:
        """What is kept of it."""
        return EngineFigures(
            auc_difference=self.auc_difference,
            decision_flips=self.disagreement.decision_flips,
            probability_shift=self.disagreement.probability_shift,
            largest_shift=self.disagreement.largest_shift,
            latency_ms=self.latency_ms,
            float_ms=self.float_ms,
            size_ratio=self.size_ratio,
            speedup=self.speedup,
        )


def disagreement(
    before: CrossFittedDecisions,
    after: CrossFittedDecisions,
    *,
    bootstrap: int,
    confidence: float,
    generator: np.random.Generator,
) -> Disagreement:
    """What changes from one model to the other, each read as it will be used: with what was fitted for it.

    Intervals: Wilson's with clustered variance for the flips, patient bootstrap for the mean change of a probability.
    Raises DataError where the cases differ.
    """
    if not np.array_equal(before.case_id, after.case_id):
        raise DataError("The two models predicted other cases, or in another order; predict them again.")
    flips = (before.decision != after.decision).reshape(len(before.case_id), -1)  # (N, 1 or K)
    patients = np.repeat(before.patients, flips.shape[1])
    change = np.abs(before.probability - after.probability)
    mean = change.mean(axis=1)

    def shift(weights: Weights) -> dict[str, Floats]:
        return {"shift": weights @ mean / weights.sum(axis=1)}

    how = {"bootstrap": bootstrap, "confidence": confidence, "generator": generator}
    return Disagreement(
        proportion(flips.ravel(), patients, confidence, len(flips)),
        estimates(shift, before.patients, **how)["shift"],  # type: ignore[arg-type]
        float(change.max()),
    )


def judge(candidates: Sequence[GateMeasurement], limits: Gate, auc: tuple[float | None, float | None]) -> GateVerdict:
    """Pass the fastest candidate that keeps all limits, or say for every engine why not.

    `auc` holds the float and the int8 figure for the record. A difference that is not defined is refused: what cannot
    be shown is not passed.
    """
    found = {item.engine: faults_of(item, limits) for item in candidates}
    passed = sorted((item for item in candidates if not found[item.engine]), key=lambda item: item.latency_ms)
    faults = [f"{engine}: {fault}" for engine, told in found.items() for fault in told]
    chosen = passed[0] if passed else min(candidates, key=lambda item: item.latency_ms)
    figures = GateFigures(
        engine=chosen.engine,
        engines_passed=tuple(item.engine for item in passed),
        engines_refused=tuple(faults) if passed else (),
        auc_float=auc[0],
        auc_int8=auc[1],
        limits=limits,
        engines={item.engine: item.figures for item in candidates},
    )
    return GateVerdict(passed=bool(passed), reasons=() if passed else tuple(faults), figures=figures)


def loses(item: GateMeasurement, limits: Gate) -> list[str]:
    """What of its accuracy a candidate loses beyond the limits: leaving layers in float may win that back."""
    # Asked the other way round (not x <= limit), so that what is not a number is a fault, too.
    difference, faults = item.auc_difference, []
    bound = difference.low if limits.strict else difference.value
    if bound is None:
        faults.append(f"the AUC difference is not defined on validation ({difference.note})")
    elif not bound >= -limits.auc_margin:
        what = "may lose" if limits.strict else "loses"
        faults.append(f"int8 {what} {-bound:.4f} AUC, more than {limits.auc_margin:g}")
    flips, shift = item.disagreement.decision_flips.value, item.disagreement.probability_shift.value
    if flips is None or not flips <= limits.max_decision_flips:
        faults.append(f"{_told(flips, '.1%')} of the decisions flip, more than {limits.max_decision_flips:.1%}")
    if shift is None or not shift <= limits.max_probability_shift:
        faults.append(
            f"probabilities move by {_told(shift, '.3f')} on average, more than {limits.max_probability_shift:g}"
        )
    return faults


def _told(value: float | None, form: str) -> str:
    return "an unknown share" if value is None else format(value, form)


def faults_of(item: GateMeasurement, limits: Gate) -> list[str]:
    """All that the gate has against a candidate; nothing where it passes."""
    faults = loses(item, limits)
    if not item.size_ratio <= limits.max_size_ratio:
        faults.append(f"the file has {item.size_ratio:.0%} of the float size, more than {limits.max_size_ratio:.0%}")
    if not item.speedup > limits.min_speedup:
        faults.append(
            f"not faster: {item.latency_ms:.2f} ms against {item.float_ms:.2f} ms of the fastest float engine "
            f"({item.speedup:.2f}x, wanted above {limits.min_speedup:g}x)"
        )
    return faults

"""The gate: a compressed model passes only if it is as good as the float model *and* faster, judged on validation.

Accuracy alone is not enough: a badly quantized model can look better on a small set while a third of its decisions
changed. So the gate looks at the same cases' decisions and probabilities, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from medopt.config import Gate, Task
from medopt.errors import DataError
from medopt.evaluation.calibrated import Calibration
from medopt.evaluation.thresholds import OperatingPoint
from medopt.records import Estimate, Predictions, Verdict


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was measured of one compressed model in one engine, against the float model.

    Latencies are medians at batch 1 of interleaved runs, in milliseconds; `float_ms` is the fastest float engine's.
    """

    engine: str
    auc_difference: Estimate
    decision_flips: float
    probability_shift: float
    largest_shift: float
    int8_ms: float
    float_ms: float
    size_ratio: float

    @property
    def speedup(self) -> float:
        """How many times faster than the fastest float engine."""
        return self.float_ms / self.int8_ms


def disagreement(
    before: Predictions,
    after: Predictions,
    task: Task,
    calibrations: Sequence[Calibration],
    points: Sequence[OperatingPoint],
) -> tuple[float, float, float]:
    """Share of decisions that flip, and the mean and largest change of a probability, on the same cases.

    Each model is read as it will be used: with its own calibration and operating point. Raises DataError where the
    cases differ.
    """
    if not np.array_equal(before.case_id, after.case_id):
        raise DataError(
            f"{before.model} and {after.model} predicted other cases, or in another order; predict them again."
        )
    first, second = (fit.probabilities(t.logits, task) for fit, t in zip(calibrations, (before, after), strict=True))
    flips = points[0].decide(first) != points[1].decide(second)
    change = np.abs(first - second)
    return float(flips.mean()), float(change.mean()), float(change.max())


def judge(candidates: Sequence[Candidate], limits: Gate, auc: tuple[float | None, float | None]) -> Verdict:
    """Pass the fastest candidate that keeps all limits, or say for every engine why not.

    `auc` holds the float and the int8 figure for the record. A difference that is not defined is refused: what cannot
    be shown is not passed.
    """
    found = {item.engine: _faults(item, limits) for item in candidates}
    passed = sorted((item for item in candidates if not found[item.engine]), key=lambda item: item.int8_ms)
    faults = [f"{engine}: {fault}" for engine, told in found.items() for fault in told]
    chosen = passed[0] if passed else min(candidates, key=lambda item: item.int8_ms)
    figures = {
        "engine": chosen.engine,
        "engines_passed": [item.engine for item in passed],
        "engines_refused": faults if passed else [],
        "auc_float": auc[0],
        "auc_int8": auc[1],
        "limits": limits.model_dump(),
        "engines": {
            item.engine: {
                **{key: value for key, value in asdict(item).items() if key not in ("engine", "auc_difference")},
                "auc_difference": item.auc_difference.as_dict(),
                "speedup": item.speedup,
            }
            for item in candidates
        },
    }
    return Verdict(bool(passed), () if passed else tuple(faults), figures)


def _faults(item: Candidate, limits: Gate) -> list[str]:
    # Asked the other way round (not x <= limit), so that what is not a number is a fault, too.
    difference, faults = item.auc_difference, []
    bound = difference.low if limits.strict else difference.value
    if bound is None:
        faults.append(f"the AUC difference is not defined on validation ({difference.note})")
    elif not bound >= -limits.auc_margin:
        what = "may lose" if limits.strict else "loses"
        faults.append(f"int8 {what} {-bound:.4f} AUC, more than {limits.auc_margin:g}")
    if not item.decision_flips <= limits.max_decision_flips:
        faults.append(f"{item.decision_flips:.1%} of the decisions flip, more than {limits.max_decision_flips:.1%}")
    if not item.probability_shift <= limits.max_probability_shift:
        faults.append(
            f"probabilities move by {item.probability_shift:.3f} on average, more than {limits.max_probability_shift:g}"
        )
    if not item.size_ratio <= limits.max_size_ratio:
        faults.append(f"the file has {item.size_ratio:.0%} of the float size, more than {limits.max_size_ratio:.0%}")
    if not item.speedup > limits.min_speedup:
        faults.append(
            f"not faster: {item.int8_ms:.2f} ms against {item.float_ms:.2f} ms of the fastest float engine "
            f"({item.speedup:.2f}x, wanted above {limits.min_speedup:g}x)"
        )
    return faults

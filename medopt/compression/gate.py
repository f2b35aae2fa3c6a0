"""The gate: a compressed model passes only if it is as good as the float model *and* faster, judged on validation.

Accuracy alone is not enough: a badly quantized model can look better on a small set while a third of its decisions
changed. So the gate looks at the same cases' decisions and probabilities, too.

A figure with an interval has three outcomes. It passes where it keeps its limit and its interval keeps its bound, the
loss that would be grave; it is refused where its whole interval lies beyond the limit; else the cases are too few to
tell. One pair of 17 cases in another order is no proof of a loss, and three cases that agree are no proof of none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medopt.config import Gate
from medopt.core.errors import DataError
from medopt.core.format import count_text, format_difference, format_estimate, format_share
from medopt.core.records import Estimate
from medopt.evaluation.gate_verdict import EngineFigures, GateFigures, GateVerdict, Outcome, ShiftedCase
from medopt.evaluation.validation_fit import CrossFittedDecisions
from medopt.metrics.bootstrap import estimates
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import Floats, Weights

ENOUGH = 10  # patients of the smaller class from which on a ranking that does not change at all says something
TOO_FEW = "too few cases to"  # in the line of each criterion that cannot tell


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How two models answer the same cases: share of decisions that flip, mean and largest change of a probability."""

    decision_flips: Estimate
    probability_shift: Estimate
    largest_shift: float
    shifted: ShiftedCase | None = None


@dataclass(frozen=True, slots=True)
class GateMeasurement:
    """What was measured of one compressed model in one engine, against the float model.

    Latencies are medians at batch 1 of interleaved runs, in milliseconds; `float_ms` is the fastest float engine's.
    `fewest` are the patients of the smaller class. `error_change` is of a number: how much larger its mean absolute
    error is, as a share of the standard deviation of the truth.
    """

    engine: str
    auc_difference: Estimate
    disagreement: Disagreement
    latency_ms: float
    float_ms: float
    size_ratio: float
    fewest: int = 0
    error_change: Estimate | None = None

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
            shifted=self.disagreement.shifted,
            error_change=self.error_change,
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

    row, column = np.unravel_index(int(change.argmax()), change.shape)
    how = {"bootstrap": bootstrap, "confidence": confidence, "generator": generator}
    return Disagreement(
        proportion(flips.ravel(), patients, confidence, len(flips)),
        estimates(shift, before.patients, **how)["shift"],  # type: ignore[arg-type]
        float(change.max()),
        ShiftedCase(
            case_id=str(before.case_id[row]),
            before=float(before.probability[row, column]),
            after=float(after.probability[row, column]),
        ),
    )


@dataclass(frozen=True, slots=True)
class Criterion:
    """What the gate says of one figure: the outcome, and the figure in words with the limit that decided.

    `used` is how much of the limit is used up, 1 being all of it; `lost` whether the figure is of lost accuracy that
    layers in float may win back.
    """

    outcome: Outcome
    line: str
    used: float
    lost: bool = False


def criteria(item: GateMeasurement, limits: Gate) -> list[Criterion]:
    """All that the gate asks of a candidate."""
    difference, apart = item.auc_difference, item.disagreement
    flips, shift = apart.decision_flips, apart.probability_shift
    loss = replace(difference, value=_less(difference.value), low=_less(difference.high), high=_less(difference.low))
    if loss.value == 0 and loss.low is None and item.fewest >= ENOUGH:  # no patient is ranked otherwise
        loss = replace(loss, low=0.0, high=0.0)
    change = item.error_change
    of_number = [] if change is None else [
        _estimated(
            _told("the mean absolute error grows by {} standard deviations", "the change of the mean absolute error",
                  format_estimate(change), change),
            change,
            (limits.error_margin, limits.reach(limits.error_margin, limits.error_bound)),
            lambda value: f"{value:g}",
        )
    ]  # fmt: skip
    return [
        *of_number,
        _estimated(
            _told("the AUC changes by {}", "the AUC difference", format_difference(difference, 4), difference),
            loss,
            (limits.auc_margin, limits.reach(limits.auc_margin, limits.auc_bound)),
            lambda value: f"a loss of {value:g}",
        ),
        _estimated(
            _told("{} of the decisions flip", "the share of decisions that flip", format_share(flips), flips),
            flips,
            (limits.max_decision_flips, limits.reach(limits.max_decision_flips, limits.flips_bound)),
            lambda value: f"{100 * value:g} %",
        ),
        _estimated(
            _told(
                "probabilities move by {} on average", "the mean shift of a probability", format_estimate(shift), shift
            ),
            shift,
            (limits.max_probability_shift, limits.max_probability_shift),
            lambda value: f"{value:g}",
        ),
        _measured(
            item.size_ratio <= limits.max_size_ratio,
            f"the file has {item.size_ratio:.0%} of the float size",
            f"{limits.max_size_ratio:.0%}",
            _ratio(item.size_ratio, limits.max_size_ratio),
        ),
        _speed(item, limits),
    ]


def _estimated(
    text: str, figure: Estimate, limits: tuple[float, float], formatter: Callable[[float], str]
) -> Criterion:
    """A figure that grows with what is lost, against its limit and the bound of its interval.

    Without an interval all is possible, up to 1. Asked the other way round (not x > limit), so that what is not a
    number does not pass.
    """
    limit, bound = limits
    value = np.nan if figure.value is None else figure.value
    low, high = (0.0, 1.0) if figure.low is None or figure.high is None else (figure.low, figure.high)
    used, lost = max(_ratio(value, limit), _ratio(high, bound)), value > 0
    why = f" ({figure.note})" if figure.note and figure.low is None else ""
    if value <= limit and high <= bound:
        reach = f", and {formatter(bound)} by the interval" if bound > limit else ""
        return Criterion("passed", f"{text}; allowed: {formatter(limit)}{reach}", used)
    if low > limit:
        return Criterion("refused", f"{text}, more than {formatter(limit)}", used, lost)
    if value <= limit:
        return Criterion(
            "cannot tell", f"{text}{why}: {TOO_FEW} rule out {formatter(bound)} (limit: {formatter(limit)})", used, lost
        )
    return Criterion(
        "cannot tell", f"{text}{why}: {TOO_FEW} tell whether the limit, {formatter(limit)}, is kept", used, lost
    )


def _measured(passed: bool, text: str, limit: str, used: float) -> Criterion:
    """A figure that is measured on this machine and has no interval."""
    return (
        Criterion("passed", f"{text}; allowed: {limit}", used)
        if passed
        else Criterion("refused", f"{text}, more than {limit}", used)
    )


def _speed(item: GateMeasurement, limits: Gate) -> Criterion:
    times = f"{item.latency_ms:.2f} ms against {item.float_ms:.2f} ms of the fastest float engine"
    asked = f"{item.speedup:.2f}x, wanted above {limits.min_speedup:g}x"
    if item.speedup > limits.min_speedup:
        return Criterion("passed", f"{times} ({asked})", limits.min_speedup / item.speedup)
    return Criterion("refused", f"not faster: {times} ({asked})", np.inf)


def _less(value: float | None) -> float | None:
    return None if value is None else -value


def _told(sentence: str, name: str, figure: str, estimate: Estimate) -> str:
    """A figure in a sentence; without a value, that it is not defined."""
    said = f"{name} is not defined" if estimate.value is None else sentence.format(figure)
    return f"{said} on {count_text(estimate.n, 'validation case')}"


def _ratio(value: float, limit: float) -> float:
    return value / limit if limit > 0 else 0.0 if value <= 0 else np.inf


def judge(candidates: Sequence[GateMeasurement], limits: Gate, auc: tuple[float | None, float | None]) -> GateVerdict:
    """Pass the fastest candidate that keeps all limits, or say for every engine why not.

    `auc` holds the float and the int8 figure for the record. Where no engine passes and one is not refused, the gate
    cannot tell: what cannot be shown is not passed.
    """
    by_engine = {item.engine: criteria(item, limits) for item in candidates}
    outcomes = {engine: outcome_of(results) for engine, results in by_engine.items()}
    passed = sorted((one for one in candidates if outcomes[one.engine] == "passed"), key=lambda one: one.latency_ms)
    faults = [f"{engine}: {fault}" for engine, results in by_engine.items() for fault in faults_of(results)]
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
    return GateVerdict(
        passed=bool(passed),
        reasons=() if passed else tuple(faults),
        figures=figures,
        undecided=not passed and "cannot tell" in outcomes.values(),
        nearest=max(by_engine[chosen.engine], key=lambda one: one.used).line if passed else "",
    )


def outcome_of(criteria: Sequence[Criterion]) -> Outcome:
    """That of a candidate: the worst of its criteria."""
    outcomes: tuple[Outcome, ...] = ("refused", "cannot tell", "passed")
    return next(outcome for outcome in outcomes if any(one.outcome == outcome for one in criteria))


def faults_of(criteria: Sequence[Criterion]) -> list[str]:
    """What the gate has against a candidate, what is refused first; nothing where it passes."""
    return [one.line for outcome in ("refused", "cannot tell") for one in criteria if one.outcome == outcome]


def loses(item: GateMeasurement, limits: Gate) -> bool:
    """Whether a candidate fails by lost accuracy, which layers in float may win back."""
    return any(one.lost for one in criteria(item, limits))

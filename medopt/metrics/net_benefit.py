"""Net benefit: what deciding by a model brings over treating all or none (Vickers & Elkin 2006).

At a threshold probability t one true positive is worth t / (1 - t) false ones the other way round, so that the net
benefit is TP / n - FP / n * t / (1 - t): the share of patients who gain, less the harm done to others in that measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.metrics.bootstrap import guarded, resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.weighted import CaseGroups, Floats, Statistic, Weights

GRID = np.arange(1, 100) / 100


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit of one output against the threshold probability, with its band, and that of treating all; each (T,).

    `prevalence` is where it holds. `at_operating_point` is the net benefit at the operating point, `over_all_or_none`
    what of it exceeds the better of treating all and none; both None where there is no threshold.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    prevalence: float
    at_operating_point: Estimate | None
    over_all_or_none: Estimate | None
    thresholds: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    treat_all: tuple[float, ...]


def net_benefit(true: Floats, false: Floats, thresholds: Floats, prevalence: Floats | float) -> Floats:
    """Net benefit of sensitivities and false positive rates at threshold probabilities and a prevalence."""
    return prevalence * true - (1 - prevalence) * false * thresholds / (1 - thresholds)


def decision_curve(
    scored: CalibratedPredictions,
    output: int,
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
    prevalence: float | None = None,
) -> DecisionCurve | None:
    """The decision curve of one output on GRID; None where a class is missing.

    `prevalence` None: that of the cases, whose own spread is then in the interval.
    """
    scored, target = scored.of_output(output)
    probability = scored.probability[:, output]
    if target.all() or not target.any():
        return None
    point = _threshold(scored, output)
    cuts = GRID if point is None else np.append(GRID, np.clip(point, 1e-6, 1 - 1e-6))

    def make(groups: CaseGroups | None) -> Statistic:
        true, false = (_called(probability, rows, cuts, groups) for rows in (target, ~target))

        def statistic(weights: Weights) -> dict[str, Floats]:
            counts, others = true(weights), false(weights)
            with np.errstate(invalid="ignore"):
                hit, alarm = counts[:, 1:] / counts[:, :1], others[:, 1:] / others[:, :1]
            total = counts[:, :1] + others[:, :1]
            share = counts[:, :1] / total if prevalence is None else np.full_like(total, prevalence)
            found = net_benefit(hit, alarm, cuts, share)
            default = np.maximum(net_benefit(np.ones(1), np.ones(1), cuts, share), 0)
            names = [str(index) for index in range(len(GRID))] + ([] if point is None else ["point"])
            columns = dict(zip(names, found.T, strict=True))
            return columns if point is None else columns | {"over": found[:, -1] - default[:, -1]}

        return statistic

    patients, generator = scored.patients, np.random.default_rng(seed)
    drawn = resampled(make, patients, bootstrap=bootstrap, confidence=confidence, generator=generator)
    found = [drawn[str(index)] for index in range(len(GRID))]
    value = np.array([one.value for one in found], dtype=np.float64)
    low, high = (
        np.array([one.value if getattr(one, side) is None else getattr(one, side) for one in found], dtype=np.float64)
        for side in ("low", "high")
    )
    share = float(target.mean()) if prevalence is None else prevalence
    everyone = net_benefit(np.ones(1), np.ones(1), GRID, share)
    at, over = (None if point is None else guarded(drawn[name]) for name in ("point", "over"))
    columns = (tuple(column.tolist()) for column in (GRID, value, low, high, everyone))
    return DecisionCurve(share, at, over, *columns)


def _threshold(scored: CalibratedPredictions, output: int) -> float | None:
    found = scored.operating_point.threshold
    return found[output] if isinstance(found, tuple) else found


def _called(
    probability: Floats, rows: NDArray[np.bool_], cuts: Floats, groups: CaseGroups | None
) -> Callable[[Weights], Floats]:
    """From weights to how many of `rows` (N,) they draw, and how many of these each cut (T,) calls: (B, T + 1)."""
    order, width = np.argsort(cuts), len(cuts) + 1
    reached = np.searchsorted(cuts[order], probability[rows], side="right")
    cells = np.empty((0, width))
    if groups is not None:
        place = groups.index[rows] * width + reached
        cells = np.bincount(place, minlength=groups.count * width).reshape(groups.count, width).astype(np.float64)

    def counted(weights: Weights) -> Floats:
        if groups is None:
            found: Floats = np.stack([np.bincount(reached, weights=row[rows], minlength=width) for row in weights])
        else:
            found = weights @ cells
        at_least = found[:, ::-1].cumsum(axis=1)[:, ::-1]
        out = np.empty_like(at_least)
        out[:, 0], out[:, 1 + order] = at_least[:, 0], at_least[:, 1:]
        return out

    return counted

"""Net benefit: what deciding by a model brings over treating all or none (Vickers & Elkin 2006).

At a threshold probability t one true positive is worth t / (1 - t) false ones the other way round, so that the net
benefit is TP / n - FP / n * t / (1 - t): the share of patients who gain, less the harm done to others in that measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.evaluation.bootstrap import guarded, resampled
from medopt.evaluation.delong import patient_index
from medopt.evaluation.metrics import Floats, Groups, Statistic, Weights
from medopt.evaluation.scored import Scored
from medopt.records import Estimate

GRID = np.arange(1, 100) / 100


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit (T,) of one output against the threshold probability (T,), with its band, and that of treating all.

    `prevalence` is where it holds. `at_point` is the net benefit at the operating point, `over_defaults` what of it
    exceeds the better of treating all and none; both None where there is no threshold.
    """

    thresholds: Floats
    value: Floats
    low: Floats
    high: Floats
    treat_all: Floats
    prevalence: float
    at_point: Estimate | None
    over_defaults: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """The form that `metrics.json` carries."""
        columns = {name: getattr(self, name).tolist() for name in ("thresholds", "value", "low", "high", "treat_all")}
        points = {"at_operating_point": self.at_point, "over_all_or_none": self.over_defaults}
        told = {name: None if one is None else one.as_dict() for name, one in points.items()}
        return {"prevalence": self.prevalence} | told | columns


def net_benefit(true: Floats, false: Floats, thresholds: Floats, prevalence: Floats | float) -> Floats:
    """Net benefit of sensitivities and false positive rates at threshold probabilities and a prevalence."""
    return prevalence * true - (1 - prevalence) * false * thresholds / (1 - thresholds)


def decision_curve(
    scored: Scored, output: int, *, bootstrap: int, confidence: float, seed: int, prevalence: float | None = None
) -> DecisionCurve | None:
    """The decision curve of one output on GRID; None where a class is missing.

    `prevalence` None: that of the cases, whose own spread is then in the interval.
    """
    target, probability = scored.target[:, output], scored.probability[:, output]
    if target.all() or not target.any():
        return None
    point = _threshold(scored, output)
    cuts = GRID if point is None else np.append(GRID, np.clip(point, 1e-6, 1 - 1e-6))

    def make(groups: Groups | None) -> Statistic:
        true, false = (_called(probability, rows, cuts, groups) for rows in (target, ~target))

        def statistic(weights: Weights) -> dict[str, Floats]:
            drawn = weights.astype(np.float64)
            counts, others = drawn @ true, drawn @ false
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

    patients, generator = patient_index(scored.predictions.patient_id), np.random.default_rng(seed)
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
    return DecisionCurve(GRID, value, low, high, everyone, share, at, over)


def _threshold(scored: Scored, output: int) -> float | None:
    found = scored.operating_point.threshold
    return found[output] if isinstance(found, tuple) else found


def _called(probability: Floats, rows: NDArray[np.bool_], cuts: Floats, groups: Groups | None) -> Floats:
    """Of `rows` (N,), how many there are and how many each cut (T,) calls positive, by case or group: (., T + 1)."""
    order = np.argsort(cuts)
    reached = np.searchsorted(cuts[order], probability[rows], side="right")
    place, count = (np.flatnonzero(rows), len(rows)) if groups is None else (groups.index[rows], groups.count)
    width = len(cuts) + 1
    cells = np.bincount(place * width + reached, minlength=count * width).reshape(count, width)
    at_least = cells[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.float64)
    out = np.empty_like(at_least)
    out[:, 0] = at_least[:, 0]
    out[:, 1 + order] = at_least[:, 1:]
    return out

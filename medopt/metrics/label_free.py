"""Figures in service without labels, expected from calibrated probabilities (confidence-based performance estimation).

A case with the probability p is positive with the probability p. So of the cases called positive, the sum of their
probabilities is the expected number of true positives, and likewise for all counts (Guo et al. 2017 on calibration;
Bialek et al. 2024, arXiv:2401.08348, the method of NannyML). That holds as long as the probabilities stay calibrated:
where other patients come, but the same picture means the same finding. It cannot see that a finding began to look
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medopt.core.records import Estimate
from medopt.metrics.weighted import Floats, Index

RATES = ("auc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "prevalence")
DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one finding in service: calibrated probabilities (N,), and which (N,) were called positive.

    `patients` (N,) numbers the patients, None where each case is one; `truth` (N,) is 0 or 1 where the label has
    arrived, else NaN, and None without any label.
    """

    probability: Floats
    called: NDArray[np.bool_]
    patients: Index | None = None
    truth: Floats | None = None

    def with_labels(self, drawn: Floats) -> Floats:
        """How positive each case is: its label where it is known, else `drawn` (N,)."""
        return drawn if self.truth is None else np.where(np.isnan(self.truth), drawn, self.truth)

    def where(self, rows: NDArray[np.intp]) -> Answers:
        """These rows."""
        patients = None if self.patients is None else self.patients[rows]
        truth = None if self.truth is None else self.truth[rows]
        return Answers(self.probability[rows], self.called[rows], patients, truth)


def expected_figures(answers: Answers, positive: Floats | None = None) -> dict[str, float]:
    """Each of RATES; NaN where it is not defined.

    `positive` (N,) is how positive each case is: its truth as 0 and 1; None: its label where that has arrived, else its
    probability.

    >>> found = expected_figures(Answers(np.array([0.9, 0.8, 0.1]), np.array([True, True, False])))
    >>> round(found["sensitivity"], 3), round(found["ppv"], 3)
    (0.944, 0.85)
    """
    share = answers.with_labels(answers.probability) if positive is None else positive
    called = answers.called
    true, false = float(share[called].sum()), float((1 - share)[called].sum())
    missed, cleared = float(share[~called].sum()), float((1 - share)[~called].sum())
    return {
        "auc": _area(answers.probability, share),
        "sensitivity": _ratio(true, true + missed),
        "specificity": _ratio(cleared, cleared + false),
        "ppv": _ratio(true, true + false),
        "npv": _ratio(cleared, cleared + missed),
        "accuracy": _ratio(true + cleared, len(share)),
        "prevalence": _ratio(true + missed, len(share)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")


def _area(score: Floats, share: Floats) -> float:
    """The area beneath the expected ROC curve; equal scores count one half."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    true = np.concatenate([[0.0], share[order].cumsum()[ends]])
    false = np.concatenate([[0.0], (1 - share[order]).cumsum()[ends]])
    if not (true[-1] > 0 and false[-1] > 0):
        return float("nan")
    return float(np.trapezoid(true / true[-1], false / false[-1]))


def estimate_figures(
    answers: Answers, calibrated_on: int, *, confidence: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> dict[str, Estimate]:
    """Each of RATES with the interval that the true figure of these cases is expected in, would their labels be known.

    Three things are drawn: which patients come, the labels of their cases from the probabilities, and slope and bias of
    a calibration that `calibrated_on` cases know only so well (the inverse of its information). A label that has
    arrived stands as it is. Of one patient all cases come together, and one number draws their labels, as if a patient
    who has the finding once had it each time, which is the cautious assumption. Raises ValueError without cases.
    """
    count = len(answers.probability)
    if count == 0:
        raise ValueError("there is no answered case")
    random, position = np.random.default_rng(seed), logit(answers.probability.clip(1e-6, 1 - 1e-6))
    spread = _calibration_spread(position, calibrated_on)
    found: dict[str, list[float]] = {name: [] for name in RATES}
    patients = _Patients.of(answers.patients, count)
    for _ in range(draws):
        rows, sizes = patients.drawn(random)
        slope, bias = random.multivariate_normal((1.0, 0.0), spread)
        truth = np.repeat(random.random(len(sizes)), sizes) < expit(slope * position[rows] + bias)
        drawn = answers.where(rows)
        for name, value in expected_figures(drawn, drawn.with_labels(truth.astype(np.float64))).items():
            found[name].append(value)
    values, tail = expected_figures(answers), (1 - confidence) / 2
    return {name: _estimate(values[name], np.array(found[name]), tail, count) for name in RATES}


@dataclass(frozen=True, slots=True)
class _Patients:
    """Rows by patient: those of the patient p are `order[starts[p] : starts[p] + sizes[p]]`."""

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, patients: Index | None, count: int) -> _Patients:
        names = np.arange(count) if patients is None else patients
        order = np.argsort(names, kind="stable")
        starts = np.flatnonzero(np.diff(names[order], prepend=-1))
        return cls(order, starts, np.diff(starts, append=count))

    def drawn(self, random: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The rows of as many patients as there are, drawn with replacement, and how many rows each of them has."""
        chosen = random.integers(len(self.starts), size=len(self.starts))
        sizes = self.sizes[chosen]
        first = np.repeat(self.starts[chosen] - (sizes.cumsum() - sizes), sizes)
        return self.order[first + np.arange(len(first))], sizes


def _calibration_spread(position: Floats, calibrated_on: int) -> Floats:
    """The covariance (2, 2) of slope and bias of a logistic calibration on so many cases that lie as these do."""
    weight = expit(position) * (1 - expit(position))
    table = np.stack([position, np.ones_like(position)])
    information = calibrated_on * (table * weight) @ table.T / len(position)
    return np.asarray(np.linalg.pinv(information + 1e-6 * np.eye(2)))


def _estimate(value: float, drawn: Floats, tail: float, count: int) -> Estimate:
    known = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(known) < len(drawn) / 2:
        return Estimate(None, None, None, count, "not defined: a class or a decision is missing")
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), count)


def apart(estimated: Mapping[str, Estimate], true: Mapping[str, Estimate]) -> list[str]:
    """Figures whose true interval and expected one do not meet."""
    return [
        name
        for name, one in estimated.items()
        if (other := true.get(name)) is not None
        and None not in (one.low, one.high, other.low, other.high)
        and (one.low > other.high or one.high < other.low)  # type: ignore[operator]
    ]

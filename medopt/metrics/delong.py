"""AUC with its analytic variance and interval, for patients with one image or several.

DeLong, DeLong & Clarke-Pearson 1988 write the AUC as a mean of placement values, one a case: for a positive the share
of negatives below it, for a negative the share of positives below which it lies. Sun & Xu 2014 get them from midranks,
so that a million cases take a few sorts. Obuchowski 1997 sums them over each patient's images, because two images of
one patient are not two witnesses; with one image a patient hers is DeLong's variance.

The interval is on the logit scale with Student's t. Near 1 the variance is that of a few patients who lie on the wrong
side, and itself hardly known: its degrees of freedom come from the fourth moment of the patients' shares in it
(Satterthwaite 1946). No AUC varies more than a share of the smaller class's patients would (Birnbaum & Klose 1957), so
that Wilson's interval of such a share is as far as it goes. `benchmarks/coverage.py` measures what each choice covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medopt.core.records import Estimate
from medopt.metrics.proportions import exact, wilson
from medopt.metrics.weighted import Floats, Index, Truth, distinct

ROUNDING = 1e-13  # of a sum of AUCs under weights


@dataclass(frozen=True, slots=True)
class AucWithCovariance:
    """K AUCs of the same cases, with their `covariance` (K, K); NaN where a class is missing or one patient is all.

    `shares` (K, P) is what each patient adds to each AUC's deviation; `fewest` are the patients of the smaller class.
    """

    value: Floats
    covariance: Floats
    shares: Floats
    fewest: int

    def combined(self, weights: Floats) -> tuple[float, float, float]:
        """The sum of the AUCs under `weights` (K,), its variance, and the degrees of freedom of that."""
        value, variance = _whole(float(weights @ self.value)), float(weights @ self.covariance @ weights)
        square = (weights @ self.shares) ** 2
        if not variance > 0:
            return value, variance, np.nan
        if square.sum() < ROUNDING**2:
            return value, 0.0, np.nan
        heavy = float((square**2).sum() / square.sum() ** 2) - 1 / len(square)
        return value, variance, 2 / max(heavy, 1e-9)


def _whole(value: float) -> float:
    """0 and 1 as they are, where only the rounding of the weights lies between."""
    return float(round(value)) if np.isfinite(value) and abs(value - round(value)) < ROUNDING else value


def auc_with_covariance(score: Floats, target: Truth, patients: Index) -> AucWithCovariance:
    """AUCs of score columns (N, K) against truth columns (N, K), with their covariance over `patients` (N,).

    Each AUC is of the cases whose truth is not NaN. Patients are numbers from 0 on; those without a case here
    contribute nothing to the variance.
    """
    patients = np.cumsum(np.bincount(patients) > 0)[patients] - 1  # without gaps
    parts = [
        _parts(column, truth, patients, distinct(patients)) for column, truth in zip(score.T, target.T, strict=True)
    ]
    above, below = (np.stack([getattr(part, name) for part in parts]) for name in ("positive", "negative"))
    both = _factors(parts, 2) * (above @ below.T)
    covariance = above @ above.T * _factors(parts, 0) + below @ below.T * _factors(parts, 1) + both + both.T
    value = np.array([part.value for part in parts])
    return AucWithCovariance(value, covariance, above + below, min(min(part.patients[:2]) for part in parts))


def mean_auc(found: AucWithCovariance, cases: int, confidence: float, weights: Floats | None = None) -> Estimate:
    """The mean of K AUCs (over classes, labels or models) with its interval; no value where one is not defined.

    `weights` (K,) add up to 1; None: all are equal.
    """
    weights = np.full(len(found.value), 1 / len(found.value)) if weights is None else weights
    value, variance, freedom = found.combined(weights)
    if np.isnan(value):
        return Estimate(None, None, None, cases, "not defined: a class or a decision is missing")
    if np.isnan(variance):
        return Estimate(value, None, None, cases, "no interval: one patient only")
    if value in (0, 1) or variance <= 0:
        return _separated(value, found.fewest, cases, confidence)
    from scipy.stats import t  # its import takes a second that predicting need not wait

    half = t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance) / (value * (1 - value))
    widest = wilson(value, found.fewest, confidence)
    low, high = max(expit(logit(value) - half), widest[0]), min(expit(logit(value) + half), widest[1])
    return Estimate(value, float(low), float(high), cases)


def difference_of(
    found: AucWithCovariance, weights: Floats, cases: int, confidence: float
) -> tuple[Estimate, float | None]:
    """A difference of AUCs of the same cases, with its interval (Student's t), and p of no difference.

    `weights` (K,) add up to 0, as 1 and -1 for two AUCs.
    """
    value, variance, freedom = found.combined(weights)
    if np.isnan(value):
        return Estimate(None, None, None, cases, "not defined: a class or a decision is missing"), None
    if not variance > 0:
        why = "one patient only" if np.isnan(variance) else "no patient is ranked otherwise"
        return Estimate(value, None, None, cases, f"no interval: {why}"), None
    from scipy.stats import t

    error = np.sqrt(variance)
    half = float(t.ppf((1 + confidence) / 2, freedom) * error)
    return Estimate(value, value - half, value + half, cases), float(2 * t.sf(abs(value) / error, freedom))


def _separated(value: float, fewest: int, cases: int, confidence: float) -> Estimate:
    """An AUC of 0 or 1, of which no variance is seen.

    A perfect AUC says that each patient of the smaller class lies beyond all of the other class seen. The share of such
    patients has an exact interval (Clopper & Pearson 1934), and the AUC is at least that share: a cautious bound.
    """
    if value not in (0, 1):
        return Estimate(value, None, None, cases, "no interval: no patient deviates, as where all scores are equal")
    return exact(value, fewest, cases, confidence)


@dataclass(frozen=True, slots=True)
class _Parts:
    """One AUC, and each patient's (P,) share in what it deviates by: of its positive and of its negative cases.

    `patients` are how many have positive cases, negative cases, and any.
    """

    value: float
    positive: Floats
    negative: Floats
    patients: tuple[int, int, int]


def _parts(score: Floats, truth: NDArray[Any], patients: Index, count: int) -> _Parts:
    rows = ~np.isnan(truth)
    score, positive, patients = score[rows], truth[rows] == 1, patients[rows]
    witnesses = (distinct(patients[positive]), distinct(patients[~positive]), distinct(patients))
    if min(witnesses) == 0:
        nothing = np.full(count, np.nan)
        return _Parts(np.nan, nothing, nothing, witnesses)
    places = placements(score, positive)
    value = float(places[positive].mean())
    shares = [
        np.bincount(patients[rows], weights=places[rows] - value, minlength=count) / rows.sum()
        for rows in (positive, ~positive)
    ]
    return _Parts(value, shares[0], shares[1], witnesses)


def placements(score: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Placement values (N,): the share of the other class that a case lies on the right side of, ties one half."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    out = np.empty(len(score))
    out[positive] = (ranks[positive] - rankdata(score[positive])) / (~positive).sum()
    out[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / positive.sum()
    return out


def _factor(patients: int) -> float:
    """From the mean square to the unbiased variance; one witness has none."""
    return patients / (patients - 1) if patients > 1 else np.nan


def _factors(parts: list[_Parts], side: int) -> Floats:
    root = np.sqrt([_factor(part.patients[side]) for part in parts])
    return np.outer(root, root)

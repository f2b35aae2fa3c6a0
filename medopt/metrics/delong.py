"""AUC with its analytic variance and interval, for patients with one image or several.

DeLong, DeLong & Clarke-Pearson 1988 write the AUC as a mean of placement values, one a case: for a positive the share
of negatives below it, for a negative the share of positives below which it lies. Sun & Xu 2014 get them from midranks,
so that a million cases take a few sorts. Obuchowski 1997 sums them over each patient's images, because two images of
one patient are not two witnesses; with one image a patient hers is DeLong's variance. Where patients have different
numbers of images, the square of one who has the part w of a class counts 1 / (1 - w) times (CR2, Bell & McCaffrey
2002): with equal numbers that is her factor n / (n - 1).

The interval is on the logit scale with Student's t. Near 1 the variance is that of a few patients who lie on the wrong
side, and itself hardly known: its degrees of freedom come from the fourth moment of the patients' shares in it
(Satterthwaite 1946), and are no more than the parts of the patients allow. No AUC varies more than a share of the
smaller class's patients would (Birnbaum & Klose 1957), so that Wilson's interval of such a share is as far as it goes.
`benchmarks/coverage.py` measures what each choice covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medopt.core.records import Estimate
from medopt.metrics.proportions import degrees_of_freedom, effective_patients, exact, wilson
from medopt.metrics.weighted import Floats, Index, Truth, distinct

ROUNDING = 1e-13  # of a sum of AUCs under weights


@dataclass(frozen=True, slots=True)
class AucWithCovariance:
    """K AUCs of the same cases, with their `covariance` (K, K); NaN where a class is missing or one patient is all.

    `shares` (K, P) is what each patient adds to each AUC's deviation. `fewest` are the patients of the smaller class;
    `effective` is the effective number of these (0: as many as they are). `sides` are the covariances (K, K) of the
    positive and of the negative cases, with the most degrees of freedom that the patients' parts allow.
    """

    value: Floats
    covariance: Floats
    shares: Floats
    fewest: int
    effective: float = 0
    sides: tuple[tuple[Floats, float], ...] = ()

    def combined(self, weights: Floats) -> tuple[float, float, float]:
        """The sum of the AUCs under `weights` (K,), its variance, and the degrees of freedom of that."""
        value, variance = _whole(float(weights @ self.value)), float(weights @ self.covariance @ weights)
        square = (weights @ self.shares) ** 2
        if not variance > 0:
            return value, variance, np.nan
        if square.sum() < ROUNDING**2:
            return value, 0.0, np.nan
        heavy = float((square**2).sum() / square.sum() ** 2) - 1 / len(square)
        return value, variance, min(2 / max(heavy, 1e-9), self._freedom(weights))

    def _freedom(self, weights: Floats) -> float:
        """Degrees of freedom of the sum of both sides' variances (Satterthwaite 1946), by the patients' parts alone."""
        variances = np.array([weights @ covariance @ weights for covariance, _ in self.sides])
        unsure = sum(variance**2 / freedom for variance, (_, freedom) in zip(variances, self.sides, strict=True))
        return float(variances.sum() ** 2 / unsure) if unsure > 0 else np.inf


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
    up, down, any_ = (np.stack([part.inflation[side] for part in parts]) for side in range(3))
    both = (above * any_) @ (below * any_).T
    ups, downs = (above * up) @ (above * up).T, (below * down) @ (below * down).T
    value = np.array([part.value for part in parts])
    fewest, effective = min(part.fewest for part in parts), min(part.effective for part in parts)
    sides = tuple((found, min(part.freedom[side] for part in parts)) for side, found in enumerate((ups, downs)))
    return AucWithCovariance(value, ups + downs + both + both.T, above + below, fewest, effective, sides)


def mean_auc(aucs: AucWithCovariance, cases: int, confidence: float, weights: Floats | None = None) -> Estimate:
    """The mean of K AUCs (over classes, labels or models) with its interval; no value where one is not defined.

    `weights` (K,) add up to 1; None: all are equal.
    """
    weights = np.full(len(aucs.value), 1 / len(aucs.value)) if weights is None else weights
    value, variance, freedom = aucs.combined(weights)
    if np.isnan(value):
        return Estimate(None, None, None, cases, "not defined: a class or a decision is missing")
    if np.isnan(variance):
        return Estimate(value, None, None, cases, "no interval: one patient only")
    if value in (0, 1) or variance <= 0:
        return _separated(value, aucs.effective or aucs.fewest, cases, confidence)
    from scipy.stats import t  # its import takes a second that predicting need not wait

    half = t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance) / (value * (1 - value))
    widest = wilson(value, aucs.effective or aucs.fewest, confidence)
    low, high = max(expit(logit(value) - half), widest[0]), min(expit(logit(value) + half), widest[1])
    return Estimate(value, float(low), float(high), cases)


def difference_of(
    aucs: AucWithCovariance, weights: Floats, cases: int, confidence: float
) -> tuple[Estimate, float | None]:
    """A difference of AUCs of the same cases, with its interval (Student's t), and p of no difference.

    `weights` (K,) add up to 0, as 1 and -1 for two AUCs.
    """
    value, variance, freedom = aucs.combined(weights)
    if np.isnan(value):
        return Estimate(None, None, None, cases, "not defined: a class or a decision is missing"), None
    if not variance > 0:
        why = "one patient only" if np.isnan(variance) else "no patient is ranked otherwise"
        return Estimate(value, None, None, cases, f"no interval: {why}"), None
    from scipy.stats import t

    error = np.sqrt(variance)
    half = float(t.ppf((1 + confidence) / 2, freedom) * error)
    return Estimate(value, value - half, value + half, cases), float(2 * t.sf(abs(value) / error, freedom))


def _separated(value: float, fewest: float, cases: int, confidence: float) -> Estimate:
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

    `inflation` (P,) is what makes the squares of the shares unbiased: of positive, of negative and of all cases.
    `fewest` and `effective` are those of `AucWithCovariance`; `freedom` is that of its sides.
    """

    value: float
    positive: Floats
    negative: Floats
    inflation: tuple[Floats, Floats, Floats]
    fewest: int
    effective: float
    freedom: tuple[float, float]


def _parts(score: Floats, truth: NDArray[Any], patients: Index, count: int) -> _Parts:
    known = ~np.isnan(truth)
    score, positive, patients = score[known], truth[known] == 1, patients[known]
    sides = (positive, ~positive, np.ones(len(positive), dtype=np.bool_))
    counts = [np.bincount(patients[rows], minlength=count) for rows in sides]
    inflation = _inflation(counts[0]), _inflation(counts[1]), _inflation(counts[2])
    fewest = min(int(np.count_nonzero(each)) for each in counts[:2])
    if fewest == 0:
        nothing = np.full(count, np.nan)
        return _Parts(np.nan, nothing, nothing, (nothing, nothing, nothing), 0, 0.0, (np.nan, np.nan))
    places = placements(score, positive)
    value = float(places[positive].mean())
    shares = [
        np.bincount(patients[rows], weights=places[rows] - value, minlength=count) / rows.sum() for rows in sides[:2]
    ]
    up, down = (each[each > 0].astype(np.float64) for each in counts[:2])
    effective, freedom = min(effective_patients(up), effective_patients(down)), (_freedom(up), _freedom(down))
    return _Parts(value, shares[0], shares[1], inflation, fewest, effective, freedom)


def _freedom(counts: Floats) -> float:
    """The most degrees of freedom that a class's patients allow; no bound where they have equal numbers of cases."""
    return np.inf if np.ptp(counts) == 0 else degrees_of_freedom(counts)


def _inflation(counts: Index) -> Floats:
    """1 / sqrt(1 - w) of patients (P,) who have the part w of these cases; NaN of one who has them all."""
    left = 1 - counts / max(1, counts.sum())
    return 1 / np.sqrt(np.where(left > 0, left, np.nan))


def placements(score: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Placement values (N,): the share of the other class that a case lies on the right side of, ties one half."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    out = np.empty(len(score))
    out[positive] = (ranks[positive] - rankdata(score[positive])) / (~positive).sum()
    out[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / positive.sum()
    return out

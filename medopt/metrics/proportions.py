"""Intervals of proportions such as sensitivity, where several images of one patient are not several witnesses.

The variance of a share over clusters is that of a ratio of sums (Cochran 1977, chapter 6). It says how many
independent cases would know the share as well (Rao & Scott 1992), and for these Wilson's interval (1927) is taken. A
share of 0 or 1 has no variance to see: there the exact interval of as many patients stands.

Patients with very different numbers of cases know less than as many with equal numbers. A patient with the part w of
all cases pulls the share towards its own, so that its square counts 1 / (1 - w) times (CR2, Bell & McCaffrey 2002); the
degrees of freedom are those of the weights, and the patients count as 1 / sum w^2 of equal size (Kish 1965).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from medopt.core.records import Estimate
from medopt.metrics.weighted import Floats, Index, distinct


def wilson(value: Floats | float, cases: NDArray[Any] | float, confidence: float) -> tuple[Floats, Floats]:
    """Wilson's interval of shares `value` of `cases`; it holds the share itself, rounding aside."""
    z = float(ndtri((1 + confidence) / 2))
    share, n = np.asarray(value, dtype=np.float64), np.asarray(cases, dtype=np.float64)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.clip(centre - half, 0, share), np.clip(centre + half, share, 1)


def cases_of_patients(patients: Index) -> Floats:
    """How many cases (P,) each patient has."""
    counts = np.bincount(patients)
    return counts[counts > 0].astype(np.float64)


def effective_patients(counts: Floats) -> float:
    """The effective number of patients with `counts` (P,) cases: as many with equal numbers know as much."""
    return float(counts.sum() ** 2 / (counts**2).sum())


def degrees_of_freedom(counts: Floats) -> float:
    """Degrees of freedom of a variance over patients with `counts` (P,) cases: P - 1 where all are equal, 1 or more."""
    return max(1.0, float((counts**2).sum() ** 2 / (counts**4).sum()) - 1)


def exact(value: float, patients: float, cases: int, confidence: float) -> Estimate:
    """A share of 0 or 1 of so many patients of equal size, with the interval of Clopper & Pearson (1934)."""
    reach = ((1 - confidence) / 2) ** (1 / patients)
    low, high = (reach, 1.0) if value == 1 else (0.0, 1 - reach)
    count = f"{patients:.0f}" if float(patients).is_integer() else f"effectively {patients:.1f}"
    return Estimate(value, low, high, cases, f"exact interval from {count} patients")


def effective_cases(hit: NDArray[np.bool_], patients: Index, confidence: float) -> float:
    """How many independent cases know the share of `hit` (N,), N > 0, as well as these of `patients` (N,) do.

    At most N, and the number of patients where all cases are alike. Few clusters hardly know their own variance, which
    Student's t makes up for (Korn & Graubard 1998).
    """
    cases, names = len(hit), distinct(patients)
    share = float(hit.mean())
    counts = cases_of_patients(patients)
    if share in (0, 1) or names < 2:
        return effective_patients(counts)
    deviations = np.bincount(patients, weights=hit - share)[np.bincount(patients) > 0] / cases
    variance = float((deviations**2 / (1 - counts / cases)).sum())
    independent = share * (1 - share) / (cases - 1)
    if names == cases or variance <= independent:
        return float(cases)
    from scipy.stats import t  # its import takes a second that predicting need not wait

    middle = (1 + confidence) / 2
    known, known_of_equal = (ndtri(middle) / t.ppf(middle, [degrees_of_freedom(counts), names - 1])) ** 2
    # However few patients own most cases, the share varies no more than if all cases of a patient were alike.
    floor = known_of_equal * (effective_patients(counts) - 1)
    return float(max(1.0, floor, known * cases * independent / variance))


def proportion(hit: NDArray[np.bool_], patients: Index, confidence: float, cases: int) -> Estimate:
    """The share of `hit` (M,) with its interval; `cases` is what the estimate says it was computed on."""
    if len(hit) == 0:
        return Estimate(None, None, None, cases, "not defined: a class or a decision is missing")
    value = float(hit.mean())
    if value in (0, 1):
        return exact(value, effective_patients(cases_of_patients(patients)), cases, confidence)
    if distinct(patients) < 2:
        return Estimate(value, None, None, cases, "no interval: one patient only")
    low, high = wilson(value, effective_cases(hit, patients, confidence), confidence)
    return Estimate(value, float(low), float(high), cases)

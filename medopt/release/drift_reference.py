"""The reference for drift: distributions of scores, scans and distances on the validation split.

It holds aggregates only, and is shipped with the release: quantiles of numbers and shares of groups, none of fewer than
MIN_GROUP scans. A later month's answers are compared with it by the population stability index, PSI, and by the
Kolmogorov-Smirnov test. PSI thresholds of 0.1 and 0.25 are the usual ones (Siddiqi 2006). With few scans chance alone
exceeds them, so the PSI that chance reaches is given, too (Yurdakul & Naranjo 2020: without drift, the PSI of B bins is
distributed as a chi-square of B - 1 degrees of freedom, scaled by the numbers of scans).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from medopt.core.errors import ReleaseError

REFERENCE = "reference.json"
MIN_GROUP, BINS, MIN_SCANS = 5, 10, 15
WATCH, DRIFTED = 0.1, 0.25
REST = "all others"
Verdict = Literal["stable", "watch", "drifted", "too few scans"]


@dataclass(frozen=True, slots=True)
class Observed:
    """Columns of N scans each; a value that is not known is NaN in `numbers` and "" in `groups`."""

    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceDistribution(_File):
    """A numeric column: how many scans have a value, and the quantiles at 0, 0.01, ... 1."""

    scans: int
    quantiles: list[float]


class Shares(_File):
    """A categorical column: how many scans have a value, and how many have each; rare values are counted together."""

    scans: int
    counts: dict[str, int]


class Reference(_File):
    """`reference.json` of a release."""

    format: Literal[1] = 1
    scans: int
    numbers: dict[str, ReferenceDistribution]
    groups: dict[str, Shares]

    @classmethod
    def of(cls, scans: int, observed: Observed) -> Self:
        """The aggregates of `scans` scans; a column with fewer than MIN_SCANS values is left out."""
        numbers = {name: values[np.isfinite(values)] for name, values in observed.numbers.items()}
        groups = {name: Counter(filter(None, values)) for name, values in observed.groups.items()}
        axis = np.linspace(0, 1, 101)
        return cls(
            scans=scans,
            numbers={
                name: ReferenceDistribution(
                    scans=len(values), quantiles=[float(f"{q:.6g}") for q in np.quantile(values, axis)]
                )
                for name, values in numbers.items()
                if len(values) >= MIN_SCANS
            },
            groups={
                name: Shares(scans=counts.total(), counts=_without_rare(counts))
                for name, counts in groups.items()
                if counts.total() >= MIN_SCANS
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The reference of a release folder; raises ReleaseError where there is none."""
        try:
            return cls.model_validate_json((folder / REFERENCE).read_bytes())
        except (OSError, ValidationError):
            raise ReleaseError(
                f"{folder} holds no {REFERENCE} that this medopt can read, so there is nothing to compare service "
                "with. A release built by this version has one."
            ) from None


def _without_rare(counts: Mapping[str, int]) -> dict[str, int]:
    """Groups of MIN_GROUP scans and more; the others are counted together, so that none describes one person."""
    kept = {name: count for name, count in sorted(counts.items()) if count >= MIN_GROUP}
    rest = sum(counts.values()) - sum(kept.values())
    return kept | ({REST: rest} if rest else {})


@dataclass(frozen=True, slots=True)
class Shift:
    """How one column changed. `before` and `now` are the shares of its `bins`.

    Without drift, 19 of 20 months have a PSI below `chance`. `distance` and `p` are those of the Kolmogorov-Smirnov
    test, None for groups.
    """

    name: str
    scans: int
    psi: float | None
    chance: float | None
    verdict: Verdict
    bins: tuple[str, ...] = ()
    before: tuple[float, ...] = ()
    now: tuple[float, ...] = ()
    distance: float | None = None
    p: float | None = None


def compare(reference: Reference, observed: Observed) -> list[Shift]:
    """The change of each column that both have, from validation to now."""
    numbers = [
        _number(name, spread, values[np.isfinite(values)])
        for name, spread in reference.numbers.items()
        if (values := observed.numbers.get(name)) is not None
    ]
    return numbers + [
        _group(name, shares, [value for value in observed.groups[name] if value])
        for name, shares in reference.groups.items()
        if name in observed.groups
    ]


def _number(name: str, spread: ReferenceDistribution, values: NDArray[np.float64]) -> Shift:
    if len(values) < MIN_SCANS:
        return Shift(name, len(values), None, None, "too few scans")
    quantiles, axis = np.array(spread.quantiles), np.linspace(0, 1, 101)
    edges = np.unique(np.quantile(quantiles, np.linspace(0, 1, BINS + 1)[1:-1]))
    # Where values tie, a bin holds more than a tenth: take the shares from the quantiles themselves.
    before = _shares(np.bincount(np.searchsorted(edges, quantiles, side="right"), minlength=len(edges) + 1))
    now = _shares(np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1))
    names = [f"below {edges[0]:.4g}", *(f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges))]
    ordered = np.sort(values)
    expected = np.interp(ordered, quantiles, axis)
    steps = np.arange(len(values) + 1) / len(values)
    distance = float(max((steps[1:] - expected).max(), (expected - steps[:-1]).max()))
    size = np.sqrt(spread.scans * len(values) / (spread.scans + len(values)))
    from scipy.stats import kstwobign  # its import takes a second, and predicting needs none of it

    p = float(kstwobign.sf(size * distance))
    return _shift(name, (*names, f"{edges[-1]:.4g} and more"), before, now, spread.scans, len(values), distance, p)


def _group(name: str, shares: Shares, values: Sequence[str]) -> Shift:
    if len(values) < MIN_SCANS:
        return Shift(name, len(values), None, None, "too few scans")
    counts = Counter(value if value in shares.counts else REST for value in values)
    names = tuple(dict.fromkeys([*shares.counts, *counts]))
    before = _shares(np.array([shares.counts.get(value, 0) for value in names]))
    now = _shares(np.array([counts.get(value, 0) for value in names]))
    return _shift(name, names, before, now, shares.scans, len(values))


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def _shift(
    name: str,
    bins: tuple[str, ...],
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    scans_before: int,
    scans: int,
    distance: float | None = None,
    p: float | None = None,
) -> Shift:
    """PSI with its verdict: drift is what exceeds a threshold and what chance reaches."""
    from scipy.stats import chi2

    # Half a scan is added to every bin: an empty one would make the index infinite.
    old = (before * scans_before + 0.5) / (scans_before + 0.5 * len(bins))
    new = (now * scans + 0.5) / (scans + 0.5 * len(bins))
    psi = float(((new - old) * np.log(new / old)).sum())
    chance = float(chi2.ppf(0.95, len(bins) - 1)) * (1 / scans_before + 1 / scans) if len(bins) > 1 else 0.0
    verdict: Verdict = "stable" if psi <= max(WATCH, chance) else "drifted" if psi > DRIFTED else "watch"
    return Shift(name, scans, psi, chance, verdict, bins, tuple(before.tolist()), tuple(now.tolist()), distance, p)

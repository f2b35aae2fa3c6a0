"""What service is held against: how scores, scans and distances were spread over the validation split.

Aggregates only, shipped with the release: quantiles of numbers and shares of groups, none of fewer than SMALLEST scans.
A later month's answers are compared by the population stability index, PSI, and by Kolmogorov and Smirnov's test.
PSI thresholds of 0.1 and 0.25 are the usual ones (Siddiqi 2006); with few scans chance alone passes them, and the size
that it reaches is told beside (Yurdakul & Naranjo 2020: PSI of B bins is chance's chi-square of B - 1 degrees).
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
SMALLEST, BINS, FEWEST = 5, 10, 15
WATCH, DRIFTED = 0.1, 0.25
REST = "all others"
Verdict = Literal["stable", "watch", "drifted", "too few scans"]


@dataclass(frozen=True, slots=True)
class Observed:
    """Columns of N scans each: `numbers` with NaN and `groups` with "" where it is not known."""

    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceDistribution(_File):
    """A number: how many scans had it, and its quantiles at 0, 0.01, ... 1."""

    scans: int
    quantiles: list[float]


class Shares(_File):
    """A group: how many scans had one, and how many each; what is rare is counted together."""

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
        """The aggregates of so many scans; a column that is known of fewer than FEWEST is left out."""
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
                if len(values) >= FEWEST
            },
            groups={
                name: Shares(scans=counts.total(), counts=_without_rare(counts))
                for name, counts in groups.items()
                if counts.total() >= FEWEST
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of a release folder; raises ReleaseError where there is none."""
        try:
            return cls.model_validate_json((folder / REFERENCE).read_bytes())
        except (OSError, ValidationError):
            raise ReleaseError(
                f"{folder} holds no {REFERENCE} that this medopt can read, so there is nothing to compare service "
                "with. A release built by this version has one."
            ) from None


def _without_rare(counts: Mapping[str, int]) -> dict[str, int]:
    """Groups of SMALLEST scans and more; the others together, so that none tells of one person."""
    kept = {name: count for name, count in sorted(counts.items()) if count >= SMALLEST}
    rest = sum(counts.values()) - sum(kept.values())
    return kept | ({REST: rest} if rest else {})


@dataclass(frozen=True, slots=True)
class Shift:
    """How one column moved. `bins` name the parts, `before` and `now` are their shares; `chance` is the PSI that 19 of
    20 unchanged months stay below. `distance` and `p` are Kolmogorov and Smirnov's, None for groups.
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
    """Each column that both know, as it was on validation and as it is now."""
    found = [
        _number(name, spread, values[np.isfinite(values)])
        for name, spread in reference.numbers.items()
        if (values := observed.numbers.get(name)) is not None
    ]
    return found + [
        _group(name, shares, [value for value in observed.groups[name] if value])
        for name, shares in reference.groups.items()
        if name in observed.groups
    ]


def _number(name: str, spread: ReferenceDistribution, values: NDArray[np.float64]) -> Shift:
    if len(values) < FEWEST:
        return Shift(name, len(values), None, None, "too few scans")
    quantiles, axis = np.array(spread.quantiles), np.linspace(0, 1, 101)
    edges = np.unique(np.quantile(quantiles, np.linspace(0, 1, BINS + 1)[1:-1]))
    # Where values tie, an edge stands for more than its own tenth: count what the quantiles themselves say.
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
    return _judged(name, (*names, f"{edges[-1]:.4g} and more"), before, now, spread.scans, len(values), distance, p)


def _group(name: str, shares: Shares, values: Sequence[str]) -> Shift:
    if len(values) < FEWEST:
        return Shift(name, len(values), None, None, "too few scans")
    counts = Counter(value if value in shares.counts else REST for value in values)
    names = tuple(dict.fromkeys([*shares.counts, *counts]))
    before = _shares(np.array([shares.counts.get(one, 0) for one in names]))
    now = _shares(np.array([counts.get(one, 0) for one in names]))
    return _judged(name, names, before, now, shares.scans, len(values))


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def _judged(
    name: str,
    bins: tuple[str, ...],
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    scans_before: int,
    scans: int,
    distance: float | None = None,
    p: float | None = None,
) -> Shift:
    """PSI and its verdict: beyond a threshold, and beyond what chance reaches."""
    from scipy.stats import chi2

    # Half a scan in every bin: an empty one would make the index infinite.
    old = (before * scans_before + 0.5) / (scans_before + 0.5 * len(bins))
    new = (now * scans + 0.5) / (scans + 0.5 * len(bins))
    psi = float(((new - old) * np.log(new / old)).sum())
    chance = float(chi2.ppf(0.95, len(bins) - 1)) * (1 / scans_before + 1 / scans) if len(bins) > 1 else 0.0
    verdict: Verdict = "stable" if psi <= max(WATCH, chance) else "drifted" if psi > DRIFTED else "watch"
    return Shift(name, scans, psi, chance, verdict, bins, tuple(before.tolist()), tuple(now.tolist()), distance, p)

"""What share of 95 % intervals holds the truth? AUCs and proportions of simulated studies, for each kind of interval.

    python benchmarks/coverage.py [--studies 1000] [--json]

A study has so many patients with and without the finding: with one image each, or with several that are alike: one to
five, 40, a number that varies widely (lognormal), or one image each but for one patient who has half of all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit, logit, ndtri
from scipy.stats import norm

from medopt.core.records import Estimate
from medopt.metrics.bootstrap import estimates, guarded
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import ranking_statistic

CONFIDENCE, DRAWS = 0.95, 400
AUCS, SIZES = (0.7, 0.85, 0.93, 0.97, 0.99), ((8, 20), (15, 15), (15, 60), (40, 40), (30, 150), (100, 100))
SHARES, PATIENTS = (0.6, 0.85, 0.95, 0.98), (15, 40, 150)
IMAGES = ("1", "1 to 5", "40", "lognormal", "one big")
Limits = dict[str, tuple[float, float]]


def _owners(random: np.random.Generator, patients: int, images: str) -> np.ndarray:
    counts = {
        "1": lambda: np.ones(patients, dtype=np.int64),
        "1 to 5": lambda: random.integers(1, 6, size=patients),
        "40": lambda: np.full(patients, 40),
        "lognormal": lambda: np.maximum(1, np.round(np.exp(random.normal(0.7, 1.3, patients)))).astype(np.int64),
        "one big": lambda: np.where(np.arange(patients) == random.integers(patients), patients, 1),
    }[images]()
    return np.repeat(np.arange(patients), counts)


def area_limits(random: np.random.Generator, auc: float, size: tuple[int, int], images: str) -> Limits:
    """The intervals of one study: two normal scores, of whose variance 0.6 lies between patients with many images."""
    owner, between = _owners(random, sum(size), images), 0.0 if images == "1" else 0.6
    sick = (np.arange(sum(size)) < size[0])[owner]
    score = np.sqrt(between) * random.normal(size=sum(size))[owner] + np.sqrt(1 - between) * random.normal(
        size=len(owner)
    )
    score, target = (score + np.sqrt(2) * norm.ppf(auc) * sick)[:, None], sick[:, None]
    found = auc_with_covariance(score, target, owner)
    chosen = mean_auc(found, len(owner), CONFIDENCE)
    value, variance, _ = found.combined(np.ones(1))
    plain = chosen
    if 0 < value < 1:
        half = ndtri((1 + CONFIDENCE) / 2) * np.sqrt(variance) / (value * (1 - value))
        plain = Estimate(value, float(expit(logit(value) - half)), float(expit(logit(value) + half)), len(owner))
    drawn = estimates(ranking_statistic(score, target), owner, bootstrap=DRAWS, confidence=CONFIDENCE, generator=random)
    return _limits({"percentile": guarded(drawn["auc"]), "DeLong logit, normal": plain, "DeLong logit, t": chosen})


def share_limits(random: np.random.Generator, share: float, patients: int, images: str) -> Limits:
    """The intervals of one study: a share that differs from patient to patient where they have many images."""
    owner = _owners(random, patients, images)
    own = random.beta(3 * share, 3 * (1 - share), size=patients)[owner] if images != "1" else share
    hit = random.random(len(owner)) < own
    drawn = estimates(
        lambda weights: {"share": weights @ hit / weights.sum(axis=1)},
        owner,
        bootstrap=DRAWS,
        confidence=CONFIDENCE,
        generator=random,
    )
    chosen = proportion(hit, owner, CONFIDENCE, len(hit))
    return _limits({"percentile": guarded(drawn["share"]), "Wilson": chosen})


def _limits(found: dict[str, Estimate]) -> Limits:
    """No interval holds nothing."""
    return {
        name: (np.inf, -np.inf) if one.low is None or one.high is None else (one.low, one.high)
        for name, one in found.items()
    }


def covered(studies: int, draw: Callable[[np.random.Generator], Limits], truth: float) -> dict[str, Any]:
    """Percent of the studies whose interval holds the truth, and the median width, for each kind."""
    found = [draw(np.random.default_rng((7, study))) for study in range(studies)]
    return {
        name: {
            "covers": 100 * float(np.mean([one[name][0] <= truth <= one[name][1] for one in found])),
            "width": float(np.median([max(0.0, one[name][1] - one[name][0]) for one in found])),
        }
        for name in found[0]
    }


def rows(studies: int) -> Iterator[dict[str, Any]]:
    """A row a setting."""
    for images in IMAGES:
        for auc in AUCS:
            for size in SIZES:
                found = covered(studies, lambda random, a=auc, s=size, i=images: area_limits(random, a, s, i), auc)
                yield {"of": f"AUC {auc}", "patients": f"{size[0]} + {size[1]}", "images": images} | found
        for share in SHARES:
            for count in PATIENTS:
                found = covered(
                    studies, lambda random, s=share, c=count, i=images: share_limits(random, s, c, i), share
                )
                yield {"of": f"share {share}", "patients": str(count), "images": images} | found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = list(rows(options.studies))
    if options.json:
        print(json.dumps(found))
        return
    kinds = ("percentile", "DeLong logit, normal", "DeLong logit, t", "Wilson")
    table = Table("of", "patients", "images", *(f"{kind}: covers % (width)" for kind in kinds))
    for row in found:
        cells = (f"{row[kind]['covers']:.1f} ({row[kind]['width']:.3f})" if kind in row else "" for kind in kinds)
        table.add_row(row["of"], row["patients"], row["images"], *cells)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()

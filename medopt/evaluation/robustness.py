"""How much of a model's AUC is left when the images get worse.

Every figure of one model comes from the same draws of patients, so that differences from the clean images are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import Estimate, Predictions
from medopt.metrics.bootstrap import estimates, guarded
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.weighted import Floats, Weights, ranking_statistic

CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Robustness:
    """One model on clean and on corrupted images of the same cases.

    `auc[family][level - 1]` is the AUC; `drop[family]` the mean over its levels of what was lost; `mean` and `lost`
    are the AUC and its loss averaged over families and levels: the one robustness figure.
    """

    model: str
    clean: Estimate
    auc: Mapping[str, Sequence[Estimate]]
    drop: Mapping[str, Estimate]
    mean: Estimate
    lost: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The form of `robustness.json`."""
        return {
            "clean": self.clean.as_dict(),
            "mean": self.mean.as_dict(),
            "drop": self.lost.as_dict(),
            "families": {
                family: {"auc": [one.as_dict() for one in levels], "drop": self.drop[family].as_dict()}
                for family, levels in self.auc.items()
            },
        }


def shift_name(model: str, family: str = CLEAN, level: int = 0) -> str:
    """What a model's predictions of one corruption are called in `shift_predictions.csv`: int8|noise|3."""
    return f"{model}|{family}|{level}"


def robustness(
    clean: CalibratedPredictions,
    corrupted: Mapping[str, Sequence[CalibratedPredictions]],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> Robustness:
    """Robustness of one model; `corrupted[family]` holds its levels from the mildest on, scored as `clean` is.

    Raises DataError where a table does not hold the clean one's cases in the clean one's order.
    """
    model = clean.predictions.model.partition("|")[0]
    for family, levels in corrupted.items():
        for level, scored in enumerate(levels, start=1):
            _check_pairs(clean.predictions, scored.predictions, f"{family}, level {level}")
    base = ranking_statistic(clean.score, clean.target)
    worse = {f: [ranking_statistic(one.score, one.target) for one in levels] for f, levels in corrupted.items()}

    def statistic(weights: Weights) -> dict[str, Floats]:
        before = base(weights)["auc"]
        after = {family: np.array([one(weights)["auc"] for one in levels]) for family, levels in worse.items()}
        means = {family: table.mean(axis=0) for family, table in after.items()}
        mean = np.mean([*means.values()], axis=0)
        found = {"clean": before, "mean": mean, "lost": before - mean}
        found |= {f"drop|{family}": before - value for family, value in means.items()}
        return found | {f"{family}|{row}": auc for family, table in after.items() for row, auc in enumerate(table)}

    found = estimates(
        statistic,
        clean.predictions.patient_id,
        bootstrap=bootstrap,
        confidence=confidence,
        generator=np.random.default_rng(seed),
    )
    found = {name: guarded(one) for name, one in found.items()}
    return Robustness(
        model,
        found["clean"],
        {family: [found[f"{family}|{row}"] for row in range(len(levels))] for family, levels in corrupted.items()},
        {family: found[f"drop|{family}"] for family in corrupted},
        found["mean"],
        found["lost"],
    )


def _check_pairs(clean: Predictions, corrupted: Predictions, where: str) -> None:
    for column in ("case_id", "labels"):
        if not np.array_equal(getattr(clean, column), getattr(corrupted, column)):
            raise DataError(
                f"{corrupted.model}, {where}: its {column} are not those of the clean images. Robustness is paired; "
                "write the table of corrupted predictions again with `medopt run`."
            )


def from_tables(
    tables: Iterable[Predictions], score: Callable[[str, Predictions], CalibratedPredictions], **options: Any
) -> list[Robustness]:
    """Robustness of every model of `shift_predictions.csv`; `score` (model, table) applies what validation fitted."""
    found: dict[str, dict[str, dict[int, CalibratedPredictions]]] = {}
    for table in tables:
        model, family, level = table.model.split("|")
        found.setdefault(model, {}).setdefault(family, {})[int(level)] = score(model, table)
    ordered = {
        model: {family: [levels[level] for level in sorted(levels)] for family, levels in families.items()}
        for model, families in found.items()
    }
    return [robustness(families.pop(CLEAN)[0], families, **options) for families in ordered.values()]

"""How much of a model's AUC is left when the images get worse.

Every figure of one model comes from the same draws of patients, so that differences from the clean images are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import Predictions
from medopt.evaluation.analysis_results import FamilyRobustness, ModelRobustness
from medopt.metrics.bootstrap import estimates, guarded
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.weighted import Floats, Weights, ranking_statistic

CLEAN = "clean"


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
) -> ModelRobustness:
    """Robustness of one model; `corrupted[family]` holds its levels from the mildest on, scored as `clean` is.

    Raises DataError where a table does not hold the clean one's cases in the clean one's order.
    """
    for family, levels in corrupted.items():
        for level, scored in enumerate(levels, start=1):
            _check_pairs(clean.predictions, scored.predictions, f"{family}, level {level}")
    base = ranking_statistic(clean.score, clean.truth)
    worse = {f: [ranking_statistic(one.score, one.truth) for one in levels] for f, levels in corrupted.items()}

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
    families = {
        family: FamilyRobustness(
            auc=tuple(found[f"{family}|{row}"] for row in range(len(levels))), drop=found[f"drop|{family}"]
        )
        for family, levels in corrupted.items()
    }
    return ModelRobustness(clean=found["clean"], mean=found["mean"], drop=found["lost"], families=families)


def _check_pairs(clean: Predictions, corrupted: Predictions, where: str) -> None:
    for column in ("case_id", "labels"):
        if not np.array_equal(getattr(clean, column), getattr(corrupted, column)):
            raise DataError(
                f"{corrupted.model}, {where}: its {column} are not those of the clean images. Robustness is paired; "
                "write the table of corrupted predictions again with `medopt run`."
            )


def from_tables(
    tables: Iterable[Predictions],
    calibrate: Callable[[str, Predictions], CalibratedPredictions],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, ModelRobustness]:
    """Robustness of every model of `shift_predictions.csv`, by its name.

    `calibrate` (model, table) applies what validation fitted.
    """
    scored: dict[str, dict[str, dict[int, CalibratedPredictions]]] = {}
    for table in tables:
        model, family, level = table.model.split("|")
        scored.setdefault(model, {}).setdefault(family, {})[int(level)] = calibrate(model, table)
    results = {}
    for model, families in scored.items():
        ordered = {family: [levels[level] for level in sorted(levels)] for family, levels in families.items()}
        clean = ordered.pop(CLEAN)[0]
        results[model] = robustness(clean, ordered, bootstrap=bootstrap, confidence=confidence, seed=seed)
    return results

"""How much of a model's AUC is left when the images get worse.

Every AUC has the interval of the tables, and a loss that of a paired difference (`medopt.metrics.delong`): all come
from one covariance of the same patients, so that one figure has one interval on every page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import Estimate, Predictions
from medopt.evaluation.analysis_results import FamilyRobustness, ModelRobustness
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, difference_of, mean_auc
from medopt.metrics.weighted import Floats

CLEAN = "clean"


def shift_name(model: str, family: str = CLEAN, level: int = 0) -> str:
    """What a model's predictions of one corruption are called in `shift_predictions.csv`: int8|noise|3."""
    return f"{model}|{family}|{level}"


def robustness(
    clean: CalibratedPredictions, corrupted: Mapping[str, Sequence[CalibratedPredictions]], *, confidence: float
) -> ModelRobustness:
    """Robustness of one model; `corrupted[family]` holds its levels from the mildest on, scored as `clean` is.

    Raises DataError where a table does not hold the clean one's cases in the clean one's order.
    """
    for family, levels in corrupted.items():
        for level, scored in enumerate(levels, start=1):
            _check_pairs(clean.predictions, scored.predictions, f"{family}, level {level}")
    clean, corrupted = clean.judged, {name: [one.judged for one in levels] for name, levels in corrupted.items()}
    tables = [clean, *(one for levels in corrupted.values() for one in levels)]
    found = auc_with_covariance(
        np.hstack([one.score for one in tables]), np.hstack([one.truth for one in tables]), clean.patients
    )
    outputs, cases = clean.truth.shape[1], len(clean.predictions)

    def average(places: Sequence[int]) -> Floats:
        """The weights (K,) of the mean AUC of some tables."""
        weights = np.zeros((len(tables), outputs))
        weights[list(places)] = 1 / (len(places) * outputs)
        return weights.ravel()

    def auc(places: Sequence[int]) -> Estimate:
        return mean_auc(found, cases, confidence, average(places))

    def drop(places: Sequence[int]) -> Estimate:
        return difference_of(found, average([0]) - average(places), cases, confidence)[0]

    families, place = {}, 1
    for family, levels in corrupted.items():
        places = range(place, place + len(levels))
        families[family] = FamilyRobustness(auc=tuple(auc([one]) for one in places), drop=drop(places))
        place += len(levels)
    worse = range(1, len(tables))
    return ModelRobustness(clean=auc([0]), mean=auc(worse), drop=drop(worse), families=families)


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
    confidence: float,
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
        results[model] = robustness(clean, ordered, confidence=confidence)
    return results

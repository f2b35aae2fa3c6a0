"""How many more patients: widths of intervals by the size of a test set, and the learning curve of runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import logit, ndtri

from medopt.core.errors import DataError
from medopt.core.records import Estimate, Kind
from medopt.core.result import Result
from medopt.evaluation.predictions_io import read_predictions
from medopt.evaluation.run_metrics import RunMetrics
from medopt.metrics.learning_curve import fit_learning_curve
from medopt.metrics.sample_size import Sampling, auc_width, patients_for, share_width


class NeededPatients(Result):
    """Test patients that a figure's interval takes: `patients` for the wished width (None: no number is enough).

    `widths` has the width by number of patients.
    """

    figure: str
    expected: float
    width: float
    patients: int | None
    widths: dict[int, float]


class CurvePoint(Result):
    """A run of a learning curve."""

    run: str
    patients: int
    auc: Estimate


class LearningCurveResult(Result):
    """AUC(n) = asymptote - slope * n^-exponent through runs, and what it predicts for numbers of training patients."""

    model: Kind
    runs: tuple[CurvePoint, ...]
    asymptote: float
    slope: float
    exponent: float
    predicted: dict[int, Estimate]
    note: str = (
        "The interval covers the choice of test patients and the scatter of the runs, not that the law may not hold "
        "beyond the largest run."
    )


class PowerResult(Result):
    """What `medopt manifest power` says."""

    confidence: float
    prevalence: float | None = None
    images: float = 1.0
    design_effect: float = 1.0
    needed: tuple[NeededPatients, ...] = ()
    curve: LearningCurveResult | None = None


def needed_patients(
    expected: Mapping[str, float], width: float, sampling: Sampling, sizes: Sequence[int] = ()
) -> tuple[NeededPatients, ...]:
    """For `auc`, `sensitivity` and `specificity` of the given expected values: the patients for a width."""

    def width_at(figure: str, value: float, patients: int) -> float:
        if figure == "auc":
            return auc_width(value, patients, sampling)
        cases = sampling.cases(patients)[0 if figure == "sensitivity" else 1]
        return share_width(value, cases, sampling.confidence)

    return tuple(
        NeededPatients(
            figure=figure,
            expected=value,
            width=width,
            patients=patients_for(width, lambda count, f=figure, v=value: width_at(f, v, count)),  # type: ignore[misc]
            widths={count: width_at(figure, value, count) for count in sizes},
        )
        for figure, value in expected.items()
    )


def learning_curve(
    folders: Sequence[Path], sizes: Sequence[int] = (), model: Kind = "float", confidence: float = 0.95
) -> LearningCurveResult:
    """The learning curve of runs that differ in their training patients alone, on the same test cases.

    Without `sizes` it predicts twice and four times the patients of the largest run. Raises DataError where the runs do
    not score the same test cases, or are too few.
    """
    points, errors = [], []
    tested: set[str] | None = None
    for folder in folders:
        auc = RunMetrics.read(folder).test[model].auc
        if auc.value is None or auc.low is None or auc.high is None:
            raise DataError(f"{folder} has no test AUC with an interval ({auc.note}).")
        table = next(table for table in read_predictions(folder / "predictions.csv") if table.model == model)
        cases = set(table.case_id[table.split == "test"].tolist())
        if tested is not None and cases != tested:
            raise DataError(
                f"{folder} was tested on other cases than {folders[0]}: their AUCs do not make one curve. Make the "
                "smaller manifests by leaving out training patients alone."
            )
        tested = cases
        points.append(CurvePoint(run=folder.name, patients=_training_patients(folder), auc=auc))
        if auc.low > 0 and auc.high < 1:
            level = RunMetrics.read(folder).confidence
            errors.append((logit(auc.high) - logit(auc.low)) / (2 * ndtri((1 + level) / 2)))
    if not errors:
        raise DataError("None of the runs has a test AUC below 1 with an interval: there is no curve to fit.")
    counts, values = [point.patients for point in points], [point.auc.value or 0.0 for point in points]
    try:
        curve = fit_learning_curve(
            np.array(counts), np.array(values), float(np.median(errors)), np.random.default_rng(0)
        )
    except ValueError as error:
        raise DataError(f"{str(error)[0].upper()}{str(error)[1:]}.") from None
    asked = sizes or (2 * max(counts), 4 * max(counts))
    return LearningCurveResult(
        model=model,
        runs=tuple(sorted(points, key=lambda point: point.patients)),
        asymptote=curve.asymptote,
        slope=curve.slope,
        exponent=curve.exponent,
        predicted={count: curve.at(count, confidence) for count in asked},
    )


def _training_patients(folder: Path) -> int:
    try:
        with (folder / "manifest.csv").open(encoding="utf-8", newline="") as stream:
            return len({row["patient_id"] for row in csv.DictReader(stream) if row["split"] == "train"})
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / 'manifest.csv'} cannot be read ({error}). Give folders of finished runs.") from None

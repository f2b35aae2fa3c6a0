"""All figures of one model on one set of cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri

from medopt.core.errors import DataError
from medopt.core.records import UNKNOWN, Estimate, Predictions, Task, has_one_output, is_exclusive
from medopt.metrics.bootstrap import guarded, resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED, Calibration
from medopt.metrics.calibration_error import NO_INTERVAL, adaptive_calibration_error, expected_calibration_error
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.figures import METRICS, Figures
from medopt.metrics.proportions import effective_cases, proportion
from medopt.metrics.thresholds import MEDIAN, OperatingPoint
from medopt.metrics.weighted import (
    CaseGroups,
    Index,
    Statistic,
    brier_statistic,
    decision_statistic,
    ranking_statistic,
    together,
)


def evaluate(
    labels: ArrayLike,
    logits: ArrayLike,
    *,
    patients: ArrayLike | None = None,
    task: Task | None = None,
    threshold: float | Sequence[float] = 0.5,
    calibration: Calibration = UNCALIBRATED,
    prevalence: float | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Figures:
    """All figures of a model's logits against the truth, each with an interval that knows which cases share a patient.

    Args:
        labels: (N,) class indices, or (N, K) zeros and ones where several labels may hold at once, NaN where one is
            not known: each label is then judged on the cases of which it is known.
        logits: (N,) or (N, 1) of a binary question, (N, K) of K classes or labels; before any sigmoid or softmax.
        patients: (N,) names or numbers; None: each case is a patient of its own.
        task: None: multilabel for labels (N, K), else binary for one column of logits and multiclass for several.
        threshold: the probability from which a case is called positive, one or one a label. Of several classes the most
            probable one is chosen, without a threshold. Choose it on other cases than these.
        calibration: how logits become probabilities, fitted on other cases than these (`fit_calibration`).
        prevalence: of a binary question, where PPV and NPV are to hold, in 0..1; None: that of these cases.
        bootstrap: how many resamples of patients give the intervals that have no formula.
        confidence: of the intervals, in 0..1.
        seed: of the resamples; the same seed gives the same intervals.

    Raises:
        DataError: the arrays do not belong together, hold other labels than these, or a logit is not finite.

    >>> figures = evaluate([0, 0, 1, 0, 1, 1], [-2.0, -1.0, -0.5, 0.2, 1.5, 3.0], patients=list("aabcde"))
    >>> round(figures.auc.value, 3), figures.sensitivity.n, figures.ppv.value
    (0.889, 6, 0.6666666666666666)
    """
    predictions, kind = _as_predictions(labels, logits, patients, task)
    if isinstance(threshold, Sequence):
        point = OperatingPoint(tuple(threshold), "fixed")
    elif kind == "multilabel":
        point = OperatingPoint((threshold,) * predictions.logits.shape[1], "fixed")
    else:
        exclusive = OperatingPoint(None, MEDIAN if kind == "ordinal" else "argmax")
        point = exclusive if is_exclusive(kind) else OperatingPoint(threshold, "fixed")
    scored = CalibratedPredictions(predictions, kind, calibration, point)
    return all_figures(scored, bootstrap=bootstrap, confidence=confidence, seed=seed, prevalence=prevalence)


def _as_predictions(
    labels: ArrayLike, logits: ArrayLike, patients: ArrayLike | None, task: Task | None
) -> tuple[Predictions, Task]:
    """Arrays as one table, and the task that they belong to; raises DataError where they do not fit."""
    truth, scores = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    cases = len(scores) if scores.ndim else 0
    names = np.arange(cases) if patients is None else np.asarray(patients)
    outputs = scores.shape[-1]
    task = task or ("multilabel" if truth.ndim == 2 else "binary" if outputs == 1 else "multiclass")
    shape = (cases, outputs) if task == "multilabel" else (cases,)
    if scores.ndim != 2 or truth.shape != shape or names.shape != (cases,) or (has_one_output(task) and outputs != 1):
        raise DataError(
            f"labels {truth.shape}, logits {np.shape(logits)} and patients {names.shape} do not belong together for a "
            f"{task} question: it takes labels {shape}, logits (N, 1 or K) and patients (N,) of the same N cases."
        )
    classes = outputs if is_exclusive(task) else 2
    unknown = np.isnan(truth) if task == "multilabel" and np.issubdtype(truth.dtype, np.floating) else None
    known = truth if unknown is None else truth[~unknown]
    if wrong := sorted(set(np.unique(known).tolist()) - set(range(classes))):
        raise DataError(
            f"labels hold {wrong[0]!r}; a {task} question with these logits has whole numbers below {classes}"
            f"{', and NaN where a label is not known' if task == 'multilabel' else ''}."
        )
    truth = truth if unknown is None else np.where(unknown, UNKNOWN, truth)
    blank = np.full(cases, "", dtype=np.str_)
    case_id = np.arange(cases).astype(np.str_)
    return Predictions("model", case_id, names.astype(np.str_), blank, blank, truth.astype(np.int64), scores), task


def all_figures(
    scored: CalibratedPredictions, *, bootstrap: int, confidence: float, seed: int, prevalence: float | None = None
) -> Figures:
    """All figures of one model, each with its interval.

    Calibration and operating point are those fitted on validation. AUC has DeLong's interval over patients, and beside
    it the bootstrap's; proportions of a binary study have Wilson's over patients; all else has the bootstrap's. PPV and
    NPV hold at `prevalence`, None: at that of these cases. A figure that is not defined has value None and a note that
    says why; an empty set has no figure. A case of which no label is known is not counted.
    """
    scored = scored.judged
    cases = len(scored.predictions)
    if cases == 0:
        return Figures(*(Estimate(None, None, None, 0, "no cases") for _ in METRICS))
    scored = scored.where(falling(scored.predictions))
    patients = scored.patients
    drawn = resampled(
        maker(scored), patients, bootstrap=bootstrap, confidence=confidence, generator=np.random.default_rng(seed)
    )
    found = {name: guarded(one) for name, one in drawn.items()}
    found["auc_bootstrap"] = found["auc"]
    found["auc"] = mean_auc(auc_with_covariance(scored.score, scored.truth, patients), cases, confidence)
    if has_one_output(scored.task):
        found |= shares_of(scored, patients, confidence)
    if has_one_output(scored.task) and prevalence is not None:
        found |= _values_at(prevalence, scored, patients, confidence)
    truth = scored.predictions.labels
    errors = {"ece": expected_calibration_error, "ace": adaptive_calibration_error}
    for name, error in errors.items():
        value = error(scored.probability, truth, scored.task)
        found[name] = Estimate(None if np.isnan(value) else value, None, None, cases, NO_INTERVAL)
    return Figures(**{name: found[name] for name in METRICS})


def statistic_of(scored: CalibratedPredictions, groups: CaseGroups | None = None) -> Statistic:
    """All figures of one model that the bootstrap can draw."""
    exclusive = is_exclusive(scored.task)
    return together(
        ranking_statistic(scored.score, scored.truth, groups),
        decision_statistic(scored.decided, scored.truth, exclusive=exclusive, groups=groups),
        brier_statistic(scored.probability, scored.truth, exclusive=exclusive, groups=groups),
    )


def maker(scored: CalibratedPredictions) -> Callable[[CaseGroups | None], Statistic]:
    """`statistic_of` these cases, for draws of cases or of groups."""
    return lambda groups: statistic_of(scored, groups)


def _shares(scored: CalibratedPredictions) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Of which cases (N,) each proportion of a binary study is the share, and which cases (N,) are counted in it."""
    target, decided = scored.target[:, 0], scored.decided[:, 0]
    every, right = np.ones_like(target), target == decided
    among = {"accuracy": every, "sensitivity": target, "specificity": ~target, "ppv": decided, "npv": ~decided}
    return {name: (rows, right) for name, rows in among.items()}


def shares_of(scored: CalibratedPredictions, patients: Index, confidence: float) -> dict[str, Estimate]:
    """Accuracy, sensitivity, specificity, PPV and NPV of a binary study, at the prevalence of these cases."""
    cases = len(patients)
    return {
        name: proportion(right[rows], patients[rows], confidence, cases)
        for name, (rows, right) in _shares(scored).items()
    }


def _values_at(
    prevalence: float, scored: CalibratedPredictions, patients: Index, confidence: float
) -> dict[str, Estimate]:
    """PPV and NPV where a share `prevalence` of cases has the finding, from sensitivity and specificity (Bayes).

    Interval: on the logit scale, each rate with two hits and two misses added, so that a perfect one has a variance,
    too (Mercaldo, Lau & Zhou 2007); of clustered images as many are counted as independent ones would know as much.
    """
    cases, z = len(patients), float(ndtri((1 + confidence) / 2))
    shares = _shares(scored)
    rates, added, counts = [], [], []
    for name in ("sensitivity", "specificity"):
        rows, right = shares[name]
        if not rows.any():
            nothing = Estimate(None, None, None, cases, "not defined: a class or a decision is missing")
            return {"ppv": nothing, "npv": nothing}
        known = effective_cases(right[rows], patients[rows], confidence)
        rates.append(float(right[rows].mean()))
        added.append((rates[-1] * known + z**2 / 2) / (known + z**2))
        counts.append(known + z**2)
    odds = float(logit(prevalence))
    found = {}
    for name, place, sign in (("ppv", 0, 1), ("npv", 1, -1)):
        hit, other = place, 1 - place
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = sign * odds + np.log(rates[hit]) - np.log(1 - rates[other])
        centre = sign * odds + np.log(added[hit]) - np.log(1 - added[other])
        spread = (1 - added[hit]) / (added[hit] * counts[hit]) + added[other] / ((1 - added[other]) * counts[other])
        low, high = (float(expit(centre + side * z * np.sqrt(spread))) for side in (-1, 1))
        if np.isnan(exact):
            found[name] = Estimate(None, None, None, cases, "not defined: no case is decided so")
            continue
        value = float(expit(exact))
        said = f"at a prevalence of {prevalence:.3g}"
        found[name] = Estimate(value, min(low, value), max(high, value), cases, said)
    return found


def falling(predictions: Predictions) -> Index:
    """The order (N,) with the highest first logit on top, which spares a binary study's every draw the sorting."""
    return np.argsort(-predictions.logits[:, 0], kind="stable")

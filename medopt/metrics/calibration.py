"""Calibration: from logits to probabilities, by what is fitted on validation.

A slope and a bias for each output; or one temperature (Guo et al. 2017, On Calibration of Modern Neural Networks), by
which all logits are divided, so that no decision of a multi-class model changes; or a rising curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from medopt.core.errors import ConfigError, DataError
from medopt.core.records import UNKNOWN, Task, is_exclusive
from medopt.metrics.logistic_calibration import LEAST, fit_binary, fit_classes
from medopt.metrics.weighted import Floats

TEMPERATURE_RANGE = (0.05, 20.0)


def truth(labels: NDArray[np.int64], outputs: int, task: Task) -> Floats:
    """One column of truth for each output, 0 or 1 and NaN where it is UNKNOWN: (N, K)."""
    return np.where(_unknown(labels, outputs), np.nan, _columns(labels, outputs, task))


def targets(labels: NDArray[np.int64], outputs: int, task: Task) -> NDArray[np.bool_]:
    """One column of truth for each output: (N, K). Binary: is it the finding; multi-class: one-hot.

    Raises DataError where a label is UNKNOWN: it is neither true nor false. `truth` holds such labels, too.
    """
    if count := int((labels == UNKNOWN).sum()):
        raise DataError(
            f"{count} of {labels.size} labels are not known, so that no figure counts them as true or false."
        )
    return _columns(labels, outputs, task)


def _unknown(labels: NDArray[np.int64], outputs: int) -> NDArray[np.bool_]:
    return np.broadcast_to((labels if labels.ndim == 2 else labels[:, None]) == UNKNOWN, (len(labels), outputs))


def _columns(labels: NDArray[np.int64], outputs: int, task: Task) -> NDArray[np.bool_]:
    if task == "multilabel":
        return labels.reshape(len(labels), -1) == 1
    if is_exclusive(task):
        return labels[:, None] == np.arange(outputs)
    return labels.reshape(-1, 1) == 1


def probabilities(logits: NDArray[np.floating], temperature: float, task: Task) -> NDArray[np.float64]:
    """Calibrated probabilities (N, K) of logits (N, K): softmax over the classes, or a sigmoid for each output.

    Raises DataError where a logit is not a finite number: no probability may come out of it.
    """
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(logits)} cases have a logit that is not a finite number; the model is damaged.")
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return np.asarray(softmax(scaled, axis=1) if is_exclusive(task) else expit(scaled))


def negative_log_likelihood(
    logits: NDArray[np.floating], target: NDArray[np.bool_], temperature: float, task: Task
) -> float:
    """Mean over cases (and over labels of a multi-label study), in nats. `target` is (N, K) of `targets`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if is_exclusive(task):
        return float(-log_softmax(scaled, axis=1)[target].mean())
    return float(-log_expit(np.where(target, scaled, -scaled)).mean())


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64], task: Task) -> float:
    """The temperature with the least negative log-likelihood, sought in log T within TEMPERATURE_RANGE.

    `logits` (N, K), `labels` (N,) or (N, K); labels that are UNKNOWN say nothing. Where the likelihood has no minimum
    the model is left as it is (1.0): no cases, one class only, logits that are all equal to zero, or every case already
    on its right side, which would drive the temperature to zero and every probability to certainty.
    """
    if task == "multilabel":  # each label that is known is a case of its own
        known = labels.reshape(logits.shape) != UNKNOWN
        logits, labels = logits[known][:, None], labels.reshape(logits.shape)[known]
    target = targets(labels, logits.shape[1], task)
    one_class = not is_exclusive(task) and target.all() == target.any()
    if (
        len(labels) == 0
        or one_class
        or len(np.unique(labels)) == 1
        or _separated(logits, target, task)
        or not logits.any()
    ):
        return 1.0
    from scipy.optimize import minimize_scalar  # fitting alone takes the time of its import

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, target, float(np.exp(log_t)), task),
        bounds=tuple(np.log(TEMPERATURE_RANGE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _separated(logits: NDArray[np.floating], target: NDArray[np.bool_], task: Task) -> bool:
    """Whether every logit is on its right side (multi-class: the true class is the highest)."""
    if is_exclusive(task):
        return bool((logits[target] > np.where(target, -np.inf, logits).max(axis=1)).all())
    return bool((np.where(target, logits, -logits) > 0).all())


@dataclass(frozen=True, slots=True)
class IsotonicCurve:
    """A rising curve through points; flat beyond its ends."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    position: tuple[float, ...]
    probability: tuple[float, ...]

    def at(self, position: Floats) -> Floats:
        """The curve at `position` (N,)."""
        return np.interp(position, self.position, self.probability)


def fit_curve(position: Floats, positive: NDArray[np.bool_]) -> IsotonicCurve:
    """Fit the curve to outcomes (N,) at positions (N,), N > 0.

    No probability of 0 or 1 comes out of N cases: the curve is held within 1 / (N + 2) of both (Laplace).
    """
    from scipy.optimize import isotonic_regression

    levels, index, counts = np.unique(position, return_inverse=True, return_counts=True)
    observed = np.bincount(index, weights=positive) / counts
    fitted = isotonic_regression(observed, weights=counts).x
    least = 1 / (len(position) + 2)
    levelled = np.clip(fitted, least, 1 - least)
    # The two ends of each flat block are all that the curve needs.
    change = np.diff(levelled) > 0
    kept = np.append(True, change) | np.append(change, True)
    return IsotonicCurve(tuple(levels[kept].tolist()), tuple(levelled[kept].tolist()))


Method = Literal["logistic", "temperature", "isotonic", "none"]
LEAST_CASES, LEAST_OF_A_CLASS = 200, 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """How logits (N, K) become probabilities (N, K).

    logistic: each output's logit times its slope plus its bias (Platt 1999); of classes that exclude each other all
    slopes are equal. temperature: one number divides all logits (Guo et al. 2017). isotonic: a rising curve an output,
    of the logit, or of the softmax's probability where classes exclude each other, which are then scaled to a sum of
    one (Zadrozny & Elkan 2002). none: as the network gives them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    method: Method = "none"
    temperature: float = 1.0
    curves: tuple[IsotonicCurve, ...] = ()
    note: str = ""
    slopes: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()

    def probabilities(self, logits: NDArray[np.floating], task: Task) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K); raises DataError where a logit is not a finite number."""
        if self.method == "logistic":
            return probabilities(self._moved(logits), 1.0, task)
        plain = probabilities(logits, self.temperature, task)
        if self.method != "isotonic":
            return plain
        position = plain if is_exclusive(task) else np.asarray(logits, dtype=np.float64)
        found = np.stack([curve.at(column) for curve, column in zip(self.curves, position.T, strict=True)], axis=1)
        return found / found.sum(axis=1, keepdims=True) if is_exclusive(task) else found

    def logits(self, logits: NDArray[np.floating], task: Task) -> NDArray[np.float64]:
        """Logits whose sigmoid or softmax is the calibrated probability: what may be averaged over models."""
        if self.method == "logistic":
            return self._moved(logits)
        if self.method != "isotonic":
            return np.asarray(logits, dtype=np.float64) / self.temperature
        found = self.probabilities(logits, task)
        return np.asarray(np.log(found) if is_exclusive(task) else logit(found))

    def _moved(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(logits, dtype=np.float64) * np.asarray(self.slopes) + np.asarray(self.biases)

    def __str__(self) -> str:
        """In a few words: logistic (slope 0.8, bias -1.2), temperature 1.34, isotonic (12 points), no calibration."""
        if self.method == "logistic":
            pairs = [
                f"slope {slope:.3g}, bias {bias:.3g}" for slope, bias in zip(self.slopes, self.biases, strict=True)
            ]
            return f"logistic ({'; '.join(pairs)})"
        if self.method == "temperature":
            return f"temperature {self.temperature:.4g}"
        if self.method == "isotonic":
            return f"isotonic ({', '.join(str(len(curve.position)) for curve in self.curves)} points)"
        return "no calibration"


UNCALIBRATED = Calibration()


def fit_calibration(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    task: Task,
    method: Method = "temperature",
    *,
    enough: bool = False,
    shift: Sequence[float] = (),
) -> Calibration:
    """Fit a calibration on validation cases: logits (N, K), labels (N,) or (N, K).

    logistic: an output with too few cases of a class gets the temperature and no bias, and the note says so. `shift`
    (K,) is what training is known to have added to the logits: it is subtracted before a temperature is fitted, which
    could not take it back.
    Raises ConfigError where isotonic is asked of too few cases (`refuse_few`), unless `enough` says that they are.
    """
    if method == "none":
        return UNCALIBRATED
    if method == "temperature":
        return _fit_scale(np.asarray(logits, dtype=np.float64), labels, task, shift)
    if method == "logistic":
        return _fit_logistic(np.asarray(logits, dtype=np.float64), labels, task, shift)
    if not enough:
        refuse_few(labels, logits.shape[1], task)
    known = truth(labels, logits.shape[1], task)
    position = softmax(logits, axis=1) if is_exclusive(task) else np.asarray(logits, dtype=np.float64)
    columns = [
        (column[~np.isnan(one)], one[~np.isnan(one)] == 1) for column, one in zip(position.T, known.T, strict=True)
    ]
    return Calibration("isotonic", 1.0, tuple(fit_curve(column, positive) for column, positive in columns))


def _fit_scale(logits: Floats, labels: NDArray[np.int64], task: Task, shift: Sequence[float]) -> Calibration:
    """One temperature, after what training added to the logits is subtracted: then a slope and a bias say the same."""
    if not shift:
        return Calibration("temperature", fit_temperature(logits, labels, task))
    temperature = fit_temperature(logits - np.asarray(shift), labels, task)
    slopes, biases = (1 / temperature,) * len(shift), tuple(-one / temperature for one in shift)
    note = "the shift of class weights or balanced sampling is subtracted as known from training"
    return Calibration("logistic", 1.0, (), note, slopes, biases)


def _fit_logistic(logits: Floats, labels: NDArray[np.int64], task: Task, shift: Sequence[float]) -> Calibration:
    known, scaled = truth(labels, logits.shape[1], task), _fit_scale(logits, labels, task, shift)
    rarest = np.minimum((known == 1).sum(axis=0), (known == 0).sum(axis=0))
    few = rarest < LEAST
    if few.any() and (is_exclusive(task) or few.all()):
        note = (
            f"one temperature without a fitted bias: validation has {rarest.min()} cases of a class, fewer than {LEAST}"
        )
        return replace(scaled, note=f"{note}; {scaled.note}" if scaled.note else note)
    if is_exclusive(task):
        slope, shifts = fit_classes(logits, labels)
        return Calibration("logistic", 1.0, slopes=(slope,) * len(shifts), biases=tuple(shifts.tolist()))
    found, outputs = [], range(logits.shape[1])
    for output, column, value, scarce in zip(outputs, logits.T, known.T, few, strict=True):
        given = ~np.isnan(value)
        alone = (scaled.slopes[output], scaled.biases[output]) if shift else (1 / scaled.temperature, 0.0)
        found.append(alone if scarce else fit_binary(column[given], value[given] == 1))
    bias = "the bias that training is known to give" if shift else "no bias"
    note = f"{few.sum()} of {len(few)} labels have fewer than {LEAST} validation cases of a class, and {bias}"
    slopes, biases = zip(*found, strict=True)
    return Calibration("logistic", 1.0, (), note if few.any() else "", slopes, biases)


def refuse_few(labels: NDArray[np.int64], outputs: int, task: Task) -> None:
    """Raise ConfigError where validation is too small for an isotonic curve, which has a freedom a case."""
    known = truth(labels, outputs, task)
    counts = [(known == value).sum(axis=0) for value in (0, 1)]
    rarest, cases = int(min(one.min() for one in counts)), int((counts[0] + counts[1]).min())
    if cases < LEAST_CASES or rarest < LEAST_OF_A_CLASS:
        raise ConfigError(
            f"evaluation.calibration: isotonic needs {LEAST_CASES} validation cases and {LEAST_OF_A_CLASS} of each "
            f"class, or it follows their noise; validation holds {cases}, and {rarest} of the rarest. Set it to "
            "temperature, which has one number to fit, or give validation more cases."
        )

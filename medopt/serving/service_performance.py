"""How well a release does in service: expected from its answers alone, and true where labels have arrived."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medopt.core.errors import DataError, listed
from medopt.core.records import Estimate
from medopt.core.result import Result
from medopt.manifest.label_words import label_key
from medopt.metrics.estimates import evaluate
from medopt.metrics.label_free import RATES, Answers, apart, estimate_figures
from medopt.metrics.proportions import proportion
from medopt.release.drift_reference import Observed, Reference, Shift, compare
from medopt.release.layout import ReleaseInfo
from medopt.release.predictor import UNDECIDED
from medopt.serving.prediction_table import read_observed

TELLING = ("content distance", "texture distance", "modality", "scanner", "image size", "outcome")
"""Columns whose drift says that the scans are others, so that probabilities may not be calibrated for them."""


class FindingPerformance(Result):
    """Figures of one finding: `expected` of all answered scans; `true` and `expected_of_these` of those with a label.

    `in_service` are those of all answered scans with the labels that have arrived in the place of what was expected of
    them: the true figures once all are there. `validation` are those of the release's test split. `apart` names figures
    whose true interval does not meet the expected one.
    """

    expected: dict[str, Estimate]
    validation: dict[str, Estimate]
    labelled: int = 0
    true: dict[str, Estimate] | None = None
    expected_of_these: dict[str, Estimate] | None = None
    in_service: dict[str, Estimate] | None = None
    apart: tuple[str, ...] = ()


class ServicePerformance(Result):
    """The performance of a release in service, by finding; `doubts` say why expected figures may be wrong.

    `patients` is how many were told apart, None where each scan counts as one.
    """

    study: str
    scans: int
    patients: int | None = None
    answered: int
    undecided: int
    confidence: float
    findings: dict[str, FindingPerformance]
    doubts: tuple[str, ...]

    @property
    def is_trustworthy(self) -> bool:
        """Whether nothing speaks against the expected figures."""
        return not self.doubts


def service_performance(
    info: ReleaseInfo, reference: Reference, answers: Path, labels: Path | None = None, seed: int = 0
) -> ServicePerformance:
    """Estimate from the table `answers` that `medopt predict` wrote; `labels` is a CSV with the columns path and label.

    A multi-label release's labels are the columns of its findings, 0 or 1 each, empty where it is not known. A column
    `patient` of the answers says which scans are of one patient. Raises DataError where a table is not what it should
    be, or where no scan has an answer.
    """
    _, found = read_observed(answers, info.labels, has_number=info.number is not None)
    rows = _rows(answers)
    truth = _truth(labels, info, {row["path"] for row in rows}) if labels else {}
    return performance_of(info, reference, rows, found, truth, str(answers), seed)


def performance_of(
    info: ReleaseInfo, reference: Reference, rows: Sequence[Mapping[str, str]], observed: Observed,
    truth: Mapping[str, Mapping[str, int]], source: str, seed: int = 0,
) -> ServicePerformance:  # fmt: skip
    """Estimate from the rows of a table of answers; `truth` is by path, `source` is named in an error.

    Declined and undecided scans have no part in a figure. Raises DataError where no scan has an answer.
    """
    confidence, scans = info.figures.confidence, len(rows)
    taken, answered = _answered(rows)
    if not answered:
        raise DataError(f"{source}: none of {scans} scans has a decision, so that nothing can be estimated.")
    known = info.figures.test.int8.auc.n
    findings = {name: _finding(info, name, answered, truth, known, confidence, seed) for name in info.reported_labels}
    shifts = compare(reference, observed)
    undecided = len(taken) - len(answered)
    doubts = (*_doubts(shifts, len(answered)), *_contradictions(findings))
    return ServicePerformance(
        study=info.study,
        scans=scans,
        patients=len({row["patient"] for row in rows}) if rows and "patient" in rows[0] else None,
        answered=len(answered),
        undecided=undecided,
        confidence=confidence,
        findings=findings,
        doubts=doubts,
    )


def expected_of_finding(info: ReleaseInfo, rows: Sequence[Mapping[str, str]], draws: int) -> dict[str, Estimate]:
    """The figures expected of a release with one finding, by fewer draws; nothing where no scan has a decision."""
    (name,), (_, answered) = info.reported_labels, _answered(rows)
    if not answered:
        return {}
    known, confidence = info.figures.test.int8.auc.n, info.figures.confidence
    return estimate_figures(_answers(answered, name, {}), known, confidence=confidence, draws=draws)


def _answered(rows: Sequence[Mapping[str, str]]) -> tuple[list[Mapping[str, str]], list[Mapping[str, str]]]:
    """The rows that were not declined, and those of them with a decision."""
    taken = [row for row in rows if not row["declined"] and not row["refused"]]
    return taken, [row for row in taken if row["decision"] != UNDECIDED]


def _finding(
    info: ReleaseInfo,
    name: str,
    rows: Sequence[Mapping[str, str]],
    truth: Mapping[str, Mapping[str, int]],
    calibrated_on: int,
    confidence: float,
    seed: int,
) -> FindingPerformance:
    rows = [row for row in rows if f"{UNDECIDED}:{name}" not in row["decision"].split(";")]
    if not rows:
        none = Estimate(None, None, None, 0, "not defined: every scan was left undecided")
        return FindingPerformance(expected=dict.fromkeys(RATES, none), validation={})
    given = _answers(rows, name, {})
    expected = estimate_figures(given, calibrated_on, confidence=confidence, seed=seed)
    test = info.figures.test.int8
    one_finding = len(info.reported_labels) == 1
    validation = {figure: getattr(test, figure) for figure in RATES if one_finding and hasattr(test, figure)}
    labelled = [row for row in rows if name in truth.get(row["path"], {})]
    if not labelled:
        return FindingPerformance(expected=expected, validation=validation)
    these, positive = _answers(labelled, name, {}), np.array([truth[row["path"]][name] for row in labelled])
    again = estimate_figures(these, calibrated_on, confidence=confidence, seed=seed)
    true = _true_figures(these, positive, confidence)
    return FindingPerformance(
        expected=expected,
        validation=validation,
        labelled=len(labelled),
        true=true,
        expected_of_these=again,
        in_service=estimate_figures(_answers(rows, name, truth), calibrated_on, confidence=confidence, seed=seed),
        apart=tuple(apart(again, true)),
    )


def _answers(rows: Sequence[Mapping[str, str]], name: str, truth: Mapping[str, Mapping[str, int]]) -> Answers:
    """The rows of a finding, with the labels in `truth`."""
    called = [name in row["decision"].split(";") for row in rows]
    known = np.array([truth.get(row["path"], {}).get(name, np.nan) for row in rows], dtype=np.float64)
    patients = None
    if "patient" in rows[0]:
        names = np.array([row["patient"] or row["path"] for row in rows], dtype=np.str_)
        patients = np.unique(names, return_inverse=True)[1].astype(np.intp)
    probability = np.array([float(row[f"probability_{name}"]) for row in rows])
    return Answers(probability, np.array(called), patients, known if truth else None)


def _true_figures(answers: Answers, positive: np.ndarray, confidence: float) -> dict[str, Estimate]:
    """The true figures of cases whose labels are known."""
    called, cases = answers.called, len(positive)
    patients = np.arange(cases) if answers.patients is None else answers.patients
    score = answers.probability.clip(1e-12, 1 - 1e-12)
    area = evaluate(positive, np.log(score / (1 - score)), patients=patients, confidence=confidence, bootstrap=100).auc
    yes = positive == 1
    shares = {
        "sensitivity": (called[yes], patients[yes]),
        "specificity": (~called[~yes], patients[~yes]),
        "ppv": (yes[called], patients[called]),
        "npv": (~yes[~called], patients[~called]),
        "accuracy": (called == yes, patients),
        "prevalence": (yes, patients),
    }
    return {"auc": area} | {name: proportion(*pair, confidence, cases) for name, pair in shares.items()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _truth(path: Path, info: ReleaseInfo, paths: set[str]) -> dict[str, dict[str, int]]:
    """The labels that are known, by path and finding. Raises DataError naming the rows that cannot be used."""
    try:
        rows = _rows(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Give a CSV with the columns path and label.") from None
    columns = label_columns(info)
    if rows and (missing := [name for name in ("path", *columns) if name not in rows[0]]):
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(rows[0])}.")
    truth: dict[str, dict[str, int]] = {}
    wrong, strange = [], 0
    for number, row in enumerate(rows, start=2):
        if row["path"] not in paths:
            strange += 1
            continue
        try:
            truth[row["path"]] = findings_of(row, info)
        except KeyError:
            wrong.append(f"row {number}")
    if wrong:
        raise DataError(f"{path}: the label of {listed(wrong)} is not {label_words(info)}.")
    if rows and strange == len(rows):
        raise DataError(f"{path}: no path in it is one of the answers. Write paths as the table of answers does.")
    return truth


def label_columns(info: ReleaseInfo) -> list[str]:
    """The columns that hold the truth in a table of labels."""
    return info.reported_labels if info.task == "multilabel" else ["label"]


def label_words(info: ReleaseInfo) -> str:
    """What such a column may hold."""
    return "0 or 1" if info.task == "multilabel" else f"one of {', '.join(info.labels)}"


def findings_of(row: Mapping[str, str], info: ReleaseInfo) -> dict[str, int]:
    """Which findings a row has, of those that it tells; raises KeyError for a label that the release does not have."""
    if info.task == "multilabel":
        cells = {name: label_key(row[name]) for name in info.reported_labels}
        return {name: {"0": 0, "1": 1}[cell] for name, cell in cells.items() if cell}
    if not row["label"].strip():
        return {}
    label = {label_key(name): name for name in info.labels}[label_key(row["label"])]
    return {name: int(name == label) for name in info.reported_labels}


def _doubts(shifts: Sequence[Shift], answered: int) -> list[str]:
    """Why the probabilities may not be calibrated for these scans."""
    drifted = [shift.name for shift in shifts if shift.verdict == "drifted" and shift.name in TELLING]
    doubts = [f"the scans are not those of validation: {', '.join(drifted)} drifted"] if drifted else []
    if answered < 30:
        doubts.append(f"only {answered} scans were answered")
    return doubts


def _contradictions(findings: Mapping[str, FindingPerformance]) -> list[str]:
    """Where labels that arrived say otherwise."""
    return [
        f"the labels that have arrived contradict the expected {', '.join(one.apart)} of {name}"
        for name, one in findings.items()
        if one.apart
    ]

"""Shortcuts: how well facts about an image that do not show its content predict the label.

Each fact (the size, the padding, the brightness, the header, ...) alone feeds a logistic model; a case is scored by a
model of other patients, so that the AUC is one of new patients. A shortcut is an AUC whose interval, widened for all
the facts that were looked at (Bonferroni), lies above one half, and that is high enough to matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medopt.config import Study
from medopt.core.format import format_estimate
from medopt.core.records import Case, Predictions
from medopt.core.reporter import Reporter
from medopt.evaluation.analysis_results import Shortcut, ShortcutsResult
from medopt.evaluation.validation_fit import PARTS, parts_of
from medopt.manifest.findings import Finding
from medopt.manifest.image_facts import file_size, read_facts
from medopt.manifest.trivial_facts import TrivialFacts, moment
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.training.linear_model import LinearFit

NAME = "shortcuts"
FEWEST = 20
"""Patients needed; with fewer, no AUC is estimated."""
MATTERS = 0.6
"""Facts with a lower AUC are not reported as shortcuts, even if they differ significantly from chance."""
STRENGTH = 1.0
SAMPLE = 500
"""Images that a run reads for this at most: their interval is narrow enough."""
AT_LEAST, BYTES = 60, 2_000_000_000
"""So many images are read whatever their size; more only while all their files together are no larger than that."""
RARE = 5  # cases: a rarer word is read as "other"

Floats = NDArray[np.float64]


def find_shortcuts(
    cases: Sequence[Case],
    facts: Sequence[TrivialFacts | None],
    study: Study,
    columns: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
) -> ShortcutsResult:
    """The cross-validated AUC of each trivial fact, the highest first. Cases whose facts are None do not count.

    The columns of the manifest (age, sex and what data.subgroups names) are facts, too, and further `columns`, with a
    text for each case.
    """
    if columns:
        given = [tuple((name, cells[row]) for name, cells in columns.items()) for row in range(len(cases))]
        cases = [replace(case, groups=(*case.groups, *more)) for case, more in zip(cases, given, strict=True)]
    known = [(case, fact) for case, fact in zip(cases, facts, strict=True) if fact is not None]
    patients = len({case.patient_id for case, _ in known})
    nothing = ShortcutsResult(images=len(known), patients=patients, level=level, looks=())
    if patients < FEWEST:
        return nothing
    table, looks = _table([case for case, _ in known], study), dict(_features(known))
    scored = CalibratedPredictions(table, study.data.task)
    both = ((scored.truth == 1).any(axis=0)) & ((scored.truth == 0).any(axis=0))  # outputs that have an AUC
    if not looks or not both.any():
        return nothing
    parts = _parts(table, scored, study)
    corrected = 1 - (1 - level) / len(looks)
    found = []
    for name, features in looks.items():
        score = _out_of_fold(features, scored, parts)
        areas = auc_with_covariance(score[:, both], scored.truth[:, both], scored.patients)
        wide = mean_auc(areas, len(known), corrected)
        is_one = wide.low is not None and wide.low > 0.5 and (wide.value or 0) >= MATTERS
        found.append(Shortcut(name=name, auc=mean_auc(areas, len(known), level), corrected=wide, is_shortcut=is_one))
    found.sort(key=lambda one: -(one.auc.value or 0))
    return ShortcutsResult(images=len(known), patients=patients, level=level, looks=tuple(found))


def read_shortcuts(
    cases: Sequence[Case], folder: Path, study: Study, reporter: Reporter | None = None, most: int = SAMPLE
) -> ShortcutsResult:
    """The same of the training and validation images below `folder`, of at most `most` of them drawn at random.

    The test split is not looked at; an image that cannot be read does not count.
    """
    chosen = _affordable([case for case in cases if case.split != "test"], folder, study.seed, most)
    facts = read_facts(chosen, folder, reporter, prepare=study.prepare)
    return find_shortcuts(chosen, [one.trivial for one in facts], study)


def _affordable(cases: Sequence[Case], folder: Path, seed: int, most: int) -> list[Case]:
    """At most so many cases, drawn at random, as many of them as can be read in about a minute."""
    order = np.random.default_rng(seed).permutation(len(cases))[:most].tolist()
    total, chosen = 0, list[int]()
    for row in order:
        total += file_size(cases[row], folder) or 0
        if total > BYTES and len(chosen) >= AT_LEAST:
            break
        chosen.append(row)
    return [cases[row] for row in sorted(chosen)]


def shortcut_lines(result: ShortcutsResult) -> list[str]:
    """What the console says of them, a line each."""
    if not result.looks:
        return [
            f"shortcuts: {result.patients} patients are too few to tell whether size, padding or header give the label"
        ]
    shortcuts = [one for one in result.looks if one.is_shortcut]
    if not shortcuts:
        best = result.looks[0]
        return [
            f"shortcuts: none in {len(result.looks)} facts; {best.name} alone reaches AUC {format_estimate(best.auc)}"
        ]
    return [f"shortcut: {one.name} alone reaches AUC {format_estimate(one.auc)}" for one in shortcuts]


def shortcut_findings(result: ShortcutsResult, study: Study) -> list[Finding]:
    """A finding for all shortcuts, which refuses where `data.shortcuts` says so."""
    text = shortcut_text(result)
    return [Finding(NAME, "refuse" if study.data.shortcuts == "refuse" else "note", text)] if text else []


def shortcut_text(result: ShortcutsResult) -> str:
    """All shortcuts in words, and what to do; empty where there is none."""
    texts = [f"{one.name} alone reaches AUC {format_estimate(one.auc)}" for one in result.looks if one.is_shortcut]
    if not texts:
        return ""
    return (
        f"{'; '.join(texts)} ({result.images} images, scored by models of other patients). A network can learn this "
        "instead of the finding, and its AUC means little unless it is clearly higher. Take cases of each label that "
        "are alike in this, or remove it: crop markers, resample to one spacing (prepare.spacing_mm), or crop to one "
        "extent instead of padding (prepare.fit)."
    )


def _parts(table: Predictions, scored: CalibratedPredictions, study: Study) -> NDArray[np.int64]:
    """The parts (N,) by patient, with each class in each; where a class is too rare for that, drawn at random."""
    parts = parts_of(table, study.data.task, study.seed)
    if len(np.unique(parts)) > 1:
        return parts
    order = np.random.default_rng(study.seed).permutation(int(scored.patients.max()) + 1)
    return np.asarray(order[scored.patients] % PARTS)


def _table(cases: Sequence[Case], study: Study) -> Predictions:
    """The cases as a table without predictions, for the draw of the parts and the truth."""
    unknown = [[-1 if label is None else label for label in case.label] for case in cases]
    labels = np.array(unknown, np.int64).reshape(len(cases), -1)
    columns = ([getattr(case, name) for case in cases] for name in ("case_id", "patient_id", "site", "split"))
    texts = [np.array(column, np.str_) for column in columns]
    single = labels if study.data.task == "multilabel" else labels[:, 0]
    return Predictions(
        "facts", texts[0], texts[1], texts[2], texts[3], single, np.zeros((len(cases), study.data.outputs))
    )


def _features(case_facts: Sequence[tuple[Case, TrivialFacts]]) -> Iterator[tuple[str, Floats]]:
    """The features (N, F) of each fact that differs between images; not those of a fact that another one repeats."""
    names = dict.fromkeys(name for _, fact in case_facts for name in fact.numbers)
    for name in names:
        width = max(len(fact.numbers.get(name, ())) for _, fact in case_facts)
        nothing = (np.nan,) * width
        values = np.array([[*fact.numbers.get(name, ()), *nothing][:width] for _, fact in case_facts], np.float64)
        if (features := _of_numbers(values)).shape[1]:
            yield name, features
    words = {
        name: [fact.words.get(name, "") for _, fact in case_facts]
        for name in {n: 0 for _, f in case_facts for n in f.words}
    }
    columns = dict.fromkeys(name for case, _ in case_facts for name, _ in case.groups)
    words |= {f"the column {name}": [dict(case.groups).get(name, "") for case, _ in case_facts] for name in columns}
    for name, column in words.items():
        numbers = _as_numbers(column)
        features = _of_words(column) if numbers is None else _of_numbers(numbers[:, None])
        if features.shape[1]:
            yield name, features


def _as_numbers(column: Sequence[str]) -> Floats | None:
    """A column of dates, times or many different numbers (an age) as numbers; None for words and few values."""
    given = [text for text in column if text]
    moments = {text: moment(text) for text in set(given)}
    if given and None not in moments.values():
        return np.array([np.nan if not text else moments[text] for text in column], np.float64)
    try:
        values = np.array([float(text) if text else np.nan for text in column])
    except ValueError:
        return None
    return values if len(set(given)) > 10 else None


def _of_numbers(values: Floats) -> Floats:
    """Of each column (N, D) that differs: its ranks from -1 to 1, their squares, and what is missing."""
    found = []
    for column in values.T:
        missing = np.isnan(column)
        if (~missing).sum() < 2 or (np.ptp(column[~missing]) == 0 and not missing.any()):
            continue
        ranks = np.zeros(len(column))
        ranks[~missing] = 2 * (rankdata(column[~missing]) - 0.5) / (~missing).sum() - 1
        found += [ranks, ranks**2, missing.astype(float)]
    kept = [column for column in found if np.ptp(column) > 0]
    return np.stack(kept, axis=1) if kept else np.empty((len(values), 0))


def _of_words(column: Sequence[str]) -> Floats:
    """A column of zeros and ones for each word that several images have."""
    words, counts = np.unique(np.array(column, np.str_), return_counts=True)
    kept = [word for word, count in zip(words, counts, strict=True) if RARE <= count < len(column)]
    return (
        np.stack([np.array(column) == word for word in kept], axis=1).astype(float)
        if kept
        else np.empty((len(column), 0))
    )


def _out_of_fold(features: Floats, scored: CalibratedPredictions, parts: NDArray[np.int64]) -> Floats:
    """Logits (N, K) of each case by a model of the other parts, which have other patients."""
    score = np.zeros(scored.truth.shape)
    for part in np.unique(parts):
        here = parts == part
        model = LinearFit(features[~here], scored.truth[~here], scored.task).model(STRENGTH)
        score[here] = model.logits(features[here])
    return score

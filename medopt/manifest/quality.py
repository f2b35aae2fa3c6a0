"""Is something wrong with the images of a manifest? Damage, empty pixels, mixed kinds, outliers, copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import listed
from medopt.core.format import count_text
from medopt.core.records import SPLITS, Case, FloatArray
from medopt.manifest.check import check_cases, missing_images
from medopt.manifest.duplicates import MIN_CORRELATION, DuplicatePair, duplicate_findings, find_case_duplicates
from medopt.manifest.findings import Finding, accept_findings, display_name
from medopt.manifest.image_facts import ImageFacts

ALIKE = 0.98  # a run compares its prepared images: a pair near .99 may pass here and be refused there
DEVIATIONS = 5.0
"""An outlier is more than this many MADs (median absolute deviation, times 1.4826) from the median, in log."""
MIN_DEVIATION = 0.05
"""Lowest MAD in log: where most images are equal, one that differs by 25 % is not worth a look yet."""
MINORITY = 0.05
"""A modality that a smaller share of the images has does not belong, unless it is another name of projection X-ray."""
_PROJECTIONS = frozenset({"CR", "DX", "RG"})  # one kind of image under three names


@dataclass(frozen=True, slots=True)
class ImageInspection:
    """The images of a manifest, in the order of its rows, and all that is wrong with them."""

    cases: tuple[Case, ...]
    facts: tuple[ImageFacts, ...]
    pairs: tuple[DuplicatePair, ...]
    findings: tuple[Finding, ...]

    @property
    def thumbnails(self) -> dict[int, FloatArray]:
        """Thumbnails (32, 32) or (16, 16, 16) at most, by row; an image that cannot be used has none."""
        return _thumbnails(self.facts)

    def alike(self) -> list[DuplicatePair]:
        """The pairs that belong into one split: near-duplicates, and those that a study's chain may make one."""
        return _case_duplicates(self.facts, ALIKE)

    @property
    def refused(self) -> list[Finding]:
        """The findings that refuse the manifest."""
        return [finding for finding in self.findings if finding.severity == "refuse"]


def inspect_images(
    cases: Sequence[Case], facts: Sequence[ImageFacts], folder: Path, study: Study, dims: int | None = None
) -> ImageInspection:
    """Every finding on the cases and their images; those that the study accepts become notes.

    `dims` is 2 or 3 where the study says it; else most images decide. Raises ConfigError where `study.data.accept`
    names a finding that cannot be accepted.

    >>> facts = read_facts(cases, folder)                               # doctest: +SKIP
    >>> inspect_images(cases, facts, folder, study).refused             # doctest: +SKIP
    []
    """
    pairs = _case_duplicates(facts, MIN_CORRELATION)
    refuse_nan = study.prepare.nan == "refuse"
    of_pixels = quality_findings(cases, facts, missing_images(cases, folder), dims, refuse_nan)
    of_images = accept_findings([*duplicate_findings(cases, pairs), *of_pixels], study)
    findings = [*check_cases(cases, folder, study), *of_images]
    return ImageInspection(tuple(cases), tuple(facts), tuple(pairs), tuple(findings))


def _thumbnails(facts: Sequence[ImageFacts | None]) -> dict[int, FloatArray]:
    return {row: fact.thumbnail for row, fact in enumerate(facts) if fact and fact.thumbnail is not None}


def _case_duplicates(facts: Sequence[ImageFacts], min_correlation: float) -> list[DuplicatePair]:
    columns = [_thumbnails(column) for column in _columns(facts)]
    return find_case_duplicates(columns, lambda row, place: _digest(facts[row], place), min_correlation)


def _digest(fact: ImageFacts, place: int) -> str:
    image = fact.at(place)
    return image.digest if image else ""


def _columns(facts: Sequence[ImageFacts]) -> list[list[ImageFacts | None]]:
    """The facts of the images of one place in a case, for each place; None where a case has none there.

    There is one place where a case is one image.
    """
    places = max((len(fact.channels) for fact in facts), default=0)
    if not places:
        return [[*facts]]
    return [[fact.channels[place] if fact.channels else None for fact in facts] for place in range(places)]


def quality_findings(
    cases: Sequence[Case],
    facts: Sequence[ImageFacts],
    missing: Mapping[int, str],
    dims: int | None = None,
    refuse_nan: bool = True,
) -> list[Finding]:
    """Everything that is wrong with the images themselves; `dims` is as in `inspect_images`.

    `missing` are the images whose files are absent: they have a finding already.
    """
    named = [(row, display_name(case), fact) for row, (case, fact) in enumerate(zip(cases, facts, strict=True))]
    findings = []
    if texts := [fact.problem for row, _, fact in named if fact.unreadable and row not in missing]:
        findings.append(_refusal("unreadable", texts, "images cannot be read", "Get them again, or drop them: --fix."))
    empty = [f"{name} {fact.problem}" for _, name, fact in named if fact.problem and not fact.unreadable]
    unknown = [f"{name} holds values that are not a number (NaN)" for _, name, fact in named if fact.nan and refuse_nan]
    if empty or unknown:
        way_out = "Drop them: --fix." if empty else ""
        if unknown:  # as SPM writes outside the body
            way_out = f"NaN outside the body is read with prepare.nan: background in the study file. {way_out}".strip()
        what = "images show nothing" if not unknown else "images show nothing, or not everywhere"
        findings.append(_refusal("no_content", [*empty, *unknown], what, way_out))
    if flagged := [name for _, name, fact in named if fact.burned_in]:
        what = f"{count_text(len(flagged), 'image')} with text burned into the pixels"
        text = f"{what}, by their header: {listed(flagged)}. "
        findings.append(Finding("burned_in", "note", text + "It may name the patient, or give the label away."))
    findings += _dimension_findings(cases, facts, dims)
    for place, column in enumerate(_columns(facts)):  # images of one place in a case are compared with each other
        pairs = [(case, fact) for case, fact in zip(cases, column, strict=True) if fact is not None]
        own = [replace(case, image=case.channels[place], channels=()) if case.channels else case for case, _ in pairs]
        alike = [fact for _, fact in pairs]
        for find in (_capture_findings, _intent_findings, _modality_findings, _outlier_findings):
            findings += find(own, alike)
    return findings


def unusable_images(facts: Sequence[ImageFacts], dims: int | None = None) -> dict[int, str]:
    """The images that cannot be trained on, by row, with the reason."""
    reason = "neither a volume among volumes nor an image among images"
    problems = {row: fact.problem for row, fact in enumerate(facts) if fact.problem}
    return dict.fromkeys(minority_dimensions(facts, dims), reason) | problems


def _refusal(name: str, texts: Sequence[str], what: str, way_out: str) -> Finding:
    return Finding(name, "refuse", f"{len(texts)} {what}: {listed(list(texts)).rstrip('.')}. {way_out}")


def minority_dimensions(facts: Sequence[ImageFacts], dims: int | None = None) -> list[int]:
    """The rows of volumes among images, or of images among volumes."""
    counts = Counter(len(fact.size) for fact in facts if fact.size)
    if not counts:
        return []
    usual = dims or counts.most_common(1)[0][0]
    return [row for row, fact in enumerate(facts) if fact.size and len(fact.size) != usual]


def _modalities(facts: Sequence[ImageFacts]) -> tuple[list[str], Counter[str]]:
    """The kind of each image, and how many images are of each kind that is known."""
    modalities = ["CR/DX" if fact.modality in _PROJECTIONS else fact.modality for fact in facts]
    return modalities, Counter(modality for modality in modalities if modality)


def _rare(counts: Counter[str]) -> set[str]:
    return {modality for modality, count in counts.items() if count < MINORITY * sum(counts.values())}


def _capture_findings(cases: Sequence[Case], facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Secondary captures and documents."""
    rare = _rare(_modalities(facts)[1])  # these have a finding of their own
    named = zip(cases, facts, strict=True)
    if captures := [display_name(case) for case, fact in named if fact.capture and fact.modality not in rare]:
        text = f"Secondary captures or documents, {len(captures)} of {len(facts)} images: {listed(captures)}. "
        yield Finding("secondary_captures", "note", text + "Do they show what a scanner measured?")


def _dimension_findings(cases: Sequence[Case], facts: Sequence[ImageFacts], dims: int | None) -> Iterator[Finding]:
    """Images with other dimensions than the rest."""
    if rows := minority_dimensions(facts, dims):
        texts = [f"{display_name(cases[row])} ({' x '.join(map(str, facts[row].size))})" for row in rows]
        difference = "2-D where volumes" if len(facts[rows[0]].size) == 2 else "3-D where images"
        yield _refusal("mixed_dimensions", texts, f"images are {difference} are expected", "Drop them: --fix.")


def _modality_findings(cases: Sequence[Case], facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Images of another modality than the rest."""
    modalities, counts = _modalities(facts)
    if rare := _rare(counts):
        named = zip(cases, modalities, strict=True)
        texts = [f"{display_name(case)} ({modality})" for case, modality in named if modality in rare]
        usual = counts.most_common(1)[0][0]
        yield _refusal("minority_modality", texts, f"images are of another modality than {usual}", "Do they belong?")
    elif len(counts) > 1:
        text = ", ".join(f"{modality} {count}" for modality, count in counts.most_common())
        yield Finding("mixed_modalities", "note", f"The images are of several modalities: {text}. Do they belong?")


def _intent_findings(cases: Sequence[Case], facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Raw detector images among those made for reading: one exposure gives both, and they look different."""
    intents = Counter(fact.intent for fact in facts if fact.intent)
    if len(intents) > 1:
        rare = intents.most_common()[-1][0]
        texts = [display_name(case) for case, fact in zip(cases, facts, strict=True) if fact.intent == rare]
        what = f"images are FOR {rare}, and {intents.most_common(1)[0][1]} are FOR {intents.most_common(1)[0][0]}"
        yield _refusal("mixed_intents", texts, what, "Take one kind: --presentation-intent of medopt manifest build.")


def _outlier_findings(cases: Sequence[Case], facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Sizes and spacings far from the median."""
    rule = f"over {DEVIATIONS:g} MAD from the median, in log"
    for name, what, values in (
        ("size_outliers", "size", [fact.size for fact in facts]),
        ("spacing_outliers", "spacing", [fact.spacing_mm for fact in facts]),
    ):
        rows = sorted({row for dims in (2, 3) for row in outliers(values, dims)})
        if rows:
            texts = [f"{display_name(cases[r])} ({' x '.join(f'{side:g}' for side in values[r])})" for r in rows]
            yield Finding(
                name, "note", f"{count_text(len(rows), 'image')} with an unusual {what} ({rule}): {listed(texts)}."
            )


def outliers(values: Sequence[tuple[float, ...]], dims: int) -> list[int]:
    """The rows with an axis more than `DEVIATIONS` MADs from the median of that axis, in log.

    Only values of `dims` axes take part; fewer than three have no outlier.
    """
    rows = [row for row, value in enumerate(values) if len(value) == dims and min(value) > 0]
    if len(rows) < 3:
        return []
    logs: NDArray[np.float64] = np.log([values[row] for row in rows])
    away = np.abs(logs - np.median(logs, axis=0))
    spread = np.maximum(1.4826 * np.median(away, axis=0), MIN_DEVIATION)
    return [rows[at] for at in np.flatnonzero((away > DEVIATIONS * spread).any(axis=1))]


def count_labels(cases: Sequence[Case], study: Study) -> list[dict[str, str | int]]:
    """A table with a row for each split and site, and one for each split: its images, and those of each label.

    Of a multi-label study also how many have a label that is not known, where there are any.
    """
    is_multilabel, names = study.data.task == "multilabel", study.data.labels
    totals: Counter[tuple[str, str]] = Counter()
    counts: dict[tuple[str, str], Counter[object]] = defaultdict(Counter)
    sites = sorted({case.site for case in cases})
    for case in cases:
        labels = _counted(case, names) if is_multilabel else [names[case.class_index]]
        for site in (case.site, "all"):
            totals[case.split, site] += 1
            counts[case.split, site].update(labels)
    partly = [name for name in names if any((name, None) in count for count in counts.values())]
    rows: list[dict[str, str | int]] = []
    for split in SPLITS:
        for site in ("all", *sites) if len(sites) > 1 else ("all",):
            row: dict[str, str | int] = {"split": split, "site": site, "images": totals[split, site]}
            row |= {name: counts[split, site][name] for name in names}
            rows.append(row | {f"{name} not known": counts[split, site][name, None] for name in partly})
    return rows


def _counted(case: Case, names: Sequence[str]) -> list[object]:
    """The names of the labels that a case has, and (name, None) of those that are not known."""
    known = zip(names, case.label, strict=True)
    return [(name, None) if value is None else name for name, value in known if value != 0]

"""One series per study, chosen by rules: which was taken, and why each of the others was not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medopt.config import SeriesFilter, SeriesRules
from medopt.core.errors import DataError, listed
from medopt.core.privacy import pseudonym
from medopt.imaging.series_index import Series

TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class SeriesSelection:
    """What the rules say of all series.

    `chosen` are the series of the studies of which exactly one is left. `reasons`, by the UID of the series, is `TAKEN`
    with the rule that decided, or the rule that excluded the series. `refusals` has a text, without an identifier, for
    each study of which none or several series are left.
    """

    chosen: tuple[Series, ...]
    reasons: dict[str, str]
    refusals: tuple[str, ...]
    cases: tuple[Mapping[str, Series], ...] = ()
    """Where there are rules for each image of a case: the series of each study, by image; a missing one has none."""

    def require_one_each(self) -> None:
        """Raise DataError listing the studies of which not exactly one series is left, if there are any."""
        if self.refusals:
            count = len(self.refusals) + len(self.cases or self.chosen)
            raise DataError(
                f"In {len(self.refusals)} of {count} studies the rules do not leave one series: "
                f"{listed(list(self.refusals), 8)} Change data.series in the study file."
            )


@dataclass(frozen=True, slots=True)
class ChannelSeries:
    """Which series of one study is which image of a case.

    `chosen` by the name of the image. `missing` and `faults` say, by name, why no series is left for an image, and why
    one that is left cannot be taken; nothing is quoted from headers. `reasons` are those of each series, by its UID.
    """

    chosen: Mapping[str, Series]
    missing: Mapping[str, str]
    faults: Mapping[str, str]
    reasons: dict[str, str]

    def problem(self, may_miss: bool) -> str:
        """Why the study is no case, as a sentence; empty where it is one. With `may_miss` it may lack an image."""
        wrong = {**self.faults} if may_miss and self.chosen else {**self.missing, **self.faults}
        return "; ".join(f"{name}: {why}" for name, why in wrong.items())


def select_channels(members: Sequence[Series], rules: SeriesRules) -> ChannelSeries:
    """Apply the rules for each image of a case to the series of one study."""
    chosen: dict[str, Series] = {}
    missing: dict[str, str] = {}
    faults: dict[str, str] = {}
    said: dict[str, list[str]] = {member.uid: [] for member in members}
    for name in rules.channels:
        left, reasons = _select_of_study(members, rules.of_channel(name))
        for uid, reason in reasons.items():
            said[uid].append(f"{name}: {reason}" if reason.startswith(TAKEN) else f"not {name}: {reason}")
        taken = [other for other, one in chosen.items() if left == [one]]
        if not left:
            rule = Counter(reason.split(" ")[0].rstrip(":") for reason in reasons.values())
            counts = ", ".join(f"{number} {word}" for word, number in rule.items())
            missing[name] = f"no series of {len(members)} is left ({counts})"
        elif len(left) > 1:
            faults[name] = f"{len(left)} of {len(members)} series are left"
        elif taken:
            faults[name] = f"the one that is left is that of {taken[0]}, too"
        elif not left[0].volume and len(left[0].files) > 1:
            faults[name] = f"the remaining series has {len(left[0].files)} images, which do not form a volume"
        else:
            chosen[name] = left[0]
    uids = {one.uid for one in chosen.values()}
    reasons = {uid: _joined(texts, uid in uids) for uid, texts in said.items()}
    return ChannelSeries(chosen, missing, faults, reasons)


def _joined(texts: Sequence[str], taken: bool) -> str:
    """What the rules of all images say of a series: which one takes it, else why none does."""
    if taken:
        return next(f"{TAKEN} as {text.replace(f': {TAKEN}', '', 1)}" for text in texts if not text.startswith("not "))
    return "; ".join(texts)


def _select_cases(studies: Mapping[str, Sequence[Series]], rules: SeriesRules, may_miss: bool) -> SeriesSelection:
    """The same for studies whose cases have several images."""
    cases, refusals = [], []
    reasons: dict[str, str] = {}
    for study, members in studies.items():
        found = select_channels(members, rules)
        reasons |= found.reasons
        if problem := found.problem(may_miss):
            refusals.append(f"study {pseudonym(study)} (a pseudonym): {problem}.")
        else:
            cases.append(found.chosen)
    chosen = tuple(one for case in cases for one in case.values())
    return SeriesSelection(chosen, reasons, tuple(refusals), tuple(cases))


def select_series(series: Sequence[Series], rules: SeriesRules, *, may_miss: bool = False) -> SeriesSelection:
    """Apply the rules of `data.series` to the series of one or several studies.

    Where these are for each image of a case, `may_miss` says that a study may lack an image.

    >>> index = index_folder(Path("export"))                            # doctest: +SKIP
    >>> selection = select_series(index.series, study.data.series)      # doctest: +SKIP
    >>> selection.require_one_each()                                    # doctest: +SKIP
    """
    studies: dict[str, list[Series]] = defaultdict(list)
    for member in series:
        studies[member.study_uid].append(member)
    if rules.channels:
        return _select_cases(studies, rules, may_miss)
    reasons: dict[str, str] = {}
    chosen, refusals = [], []
    for study, members in studies.items():
        left, reasons_of_study = _select_of_study(members, rules)
        reasons |= reasons_of_study
        if len(left) == 1:
            chosen.append(left[0])
        else:
            refusals.append(_refusal(study, members, left, reasons))
    return SeriesSelection(tuple(chosen), reasons, tuple(refusals))


def matching_series(series: Sequence[Series], rules: SeriesRules) -> list[Series]:
    """All series that no rule excludes, however many there are of a study."""
    return [member for member in series if not _exclusion_reason(member, rules)]


def _select_of_study(members: Sequence[Series], rules: SeriesFilter) -> tuple[list[Series], dict[str, str]]:
    """The series of one study that the rules leave, and the reason for each."""
    reasons = {member.uid: _exclusion_reason(member, rules) for member in members}
    matching = [member for member in members if not reasons[member.uid]]
    rank = {member.uid: _first_match(rules.description, member.description) for member in matching}
    best = min(rank.values(), default=0)
    left = [member for member in matching if rank[member.uid] == best]
    pattern = f": description finds {rules.description[best]!r}" if rules.description and matching else ""
    for member in matching:
        is_best = rank[member.uid] == best
        preferred = "" if is_best else f"description: preferred is {rules.description[best]!r}"
        reasons[member.uid] = preferred or f"{TAKEN}{pattern}"
    if len(left) > 1:
        reasons |= {member.uid: f"one of {len(left)} that are left" for member in left}
    return left, reasons


def _exclusion_reason(series: Series, rules: SeriesFilter) -> str:
    """The first rule that excludes a series; empty where none does."""
    return next((reason for holds, reason in _rule_checks(series, rules) if not holds), "")


def _rule_checks(series: Series, rules: SeriesFilter) -> Iterable[tuple[bool, str]]:
    """For each rule: whether it holds, and the reason where it does not."""
    yield not series.localizer, "localizer"
    yield rules.derived or not series.derived, "derived"
    yield rules.derived or not series.capture, "secondary capture"
    intent = rules.presentation_intent
    yield (
        intent is None or series.intent == intent.upper(),
        f"presentation_intent {series.intent.lower() or 'not said'}",
    )
    modalities = _upper(rules.modality)
    yield not modalities or series.modality.upper() in modalities, f"modality {series.modality or 'not said'}"
    yield _any_match(rules.body_part, series.body_part), f"body_part {series.body_part or 'not said'}"
    excluded = next((pattern for pattern in rules.exclude if _any_match([pattern], series.description)), None)
    yield excluded is None, f"exclude finds {excluded!r}"
    yield _any_match(rules.description, series.description), "description matches no pattern"
    missing = sorted(_upper(rules.image_type) - _upper(series.image_type))
    yield not missing, f"image_type has no {', '.join(missing)}"
    orientation = series.orientation or "not said"
    yield not rules.orientation or orientation in rules.orientation, f"orientation {orientation}"
    yield _within(rules.slices, series.frames), f"slices {series.frames}"
    yield _within(rules.thickness_mm, series.thickness_mm), f"thickness_mm {series.thickness_mm or 'not said'}"
    yield rules.contrast in (None, series.contrast), "contrast " + ("given" if series.contrast else "not given")


def _upper(words: Iterable[str]) -> set[str]:
    return {word.upper() for word in words}


def _first_match(patterns: Sequence[str], text: str) -> int:
    """The index of the first pattern that matches somewhere in a text; the number of patterns where none does."""
    matches = (index for index, pattern in enumerate(patterns) if re.search(pattern, text, re.IGNORECASE))
    return next(matches, len(patterns))


def _any_match(patterns: Sequence[str], text: str) -> bool:
    return not patterns or _first_match(patterns, text) < len(patterns)


def _within(limits: tuple[float, float] | None, value: float | None) -> bool:
    return limits is None or (value is not None and limits[0] <= value <= limits[1])


def _refusal(study: str, members: Sequence[Series], candidates: Sequence[Series], reasons: dict[str, str]) -> str:
    name = f"study {pseudonym(study)} (a pseudonym)"
    if candidates:
        labels = listed([_series_label(member) for member in candidates], 12)
        return f"{name}: {len(candidates)} of {len(members)} series are left: {labels}."
    labels = listed([f"{_series_label(member)}: {reasons[member.uid]}" for member in members], 12)
    return f"{name}: none of {len(members)} series is left: {labels}."


def hide_identifiers(series: Series, text: str) -> str:
    """A text of the header in which the patient ID and the accession number are replaced by pseudonyms."""
    for number in (series.patient, series.accession):
        text = text.replace(number, pseudonym(number)) if len(number) > 2 else text
    return text


def _series_label(series: Series) -> str:
    description = hide_identifiers(series, series.description) or "no description"
    return f"number {series.number or 'none'} {series.modality} '{description}' ({series.frames} images)"

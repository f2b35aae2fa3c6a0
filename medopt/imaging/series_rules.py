"""One series a study, chosen by rules: what was taken, and why each of the others was not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medopt.config import SeriesRules
from medopt.core.errors import DataError, listed
from medopt.core.privacy import pseudonym
from medopt.imaging.series_index import Series

TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class SeriesChoice:
    """The series chosen, one a study, and what the rules said of every series, by the series' UID.

    A reason is `TAKEN` with the rule that decided, or the rule that left the series out.
    """

    taken: tuple[Series, ...]
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say of all series: one reason each, and for every study without one series the refusal."""

    choice: SeriesChoice
    refused: tuple[str, ...]


def choose(series: Sequence[Series], rules: SeriesRules) -> SeriesChoice:
    """Exactly one series of every study.

    Raises DataError that lists, without an identifier, each study of which nothing or more than one series is left.
    """
    return settled(judge(series, rules))


def settled(found: Judgement) -> SeriesChoice:
    """The choice, where the rules leave one series of every study; raises DataError as `choose` does."""
    if found.refused:
        studies = len(found.refused) + len(found.choice.taken)
        raise DataError(
            f"In {len(found.refused)} of {studies} studies the rules do not leave one series: "
            f"{listed(list(found.refused), most=8)} Change data.series in the study file."
        )
    return found.choice


def judge(series: Sequence[Series], rules: SeriesRules) -> Judgement:
    """As `choose`, but a study that has no single series is a refusal in the answer."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        studies[one.study_uid].append(one)
    reasons: dict[str, str] = {}
    taken, refused = [], []
    for study, members in studies.items():
        left, why = _left(members, rules)
        reasons |= why
        if len(left) == 1:
            taken.append(left[0])
        else:
            refused.append(_refusal(study, members, left, reasons))
    return Judgement(SeriesChoice(tuple(taken), reasons), tuple(refused))


def fit(series: Sequence[Series], rules: SeriesRules) -> list[Series]:
    """All series that no rule leaves out, however many of a study."""
    return [one for one in series if not _unfit(one, rules)]


def _left(members: Sequence[Series], rules: SeriesRules) -> tuple[list[Series], dict[str, str]]:
    """The series of one study that the rules leave, and the reason of each."""
    reasons = {one.uid: _unfit(one, rules) for one in members}
    left = [one for one in members if not reasons[one.uid]]
    rank = {one.uid: _first_match(rules.description, one.description) for one in left}
    best = min(rank.values(), default=0)
    chosen = [one for one in left if rank[one.uid] == best]
    pattern = f": description finds {rules.description[best]!r}" if rules.description and left else ""
    for one in left:
        is_best = rank[one.uid] == best
        reasons[one.uid] = f"{TAKEN}{pattern}" if is_best else f"description: preferred is {rules.description[best]!r}"
    if len(chosen) > 1:
        reasons |= {one.uid: f"one of {len(chosen)} that are left" for one in chosen}
    return chosen, reasons


def _unfit(series: Series, rules: SeriesRules) -> str:
    """The first rule that leaves a series out, or nothing."""
    return next((reason for holds, reason in _tests(series, rules) if not holds), "")


def _tests(one: Series, rules: SeriesRules) -> Iterable[tuple[bool, str]]:
    """Whether each rule holds, with what to say where it does not."""
    yield not one.localizer, "localizer"
    yield rules.derived or not one.derived, "derived"
    wanted = _upper(rules.modality)
    yield not wanted or one.modality.upper() in wanted, f"modality {one.modality or 'not said'}"
    yield _any(rules.body_part, one.body_part), f"body_part {one.body_part or 'not said'}"
    excluded = next((pattern for pattern in rules.exclude if _any([pattern], one.description)), None)
    yield excluded is None, f"exclude finds {excluded!r}"
    yield _any(rules.description, one.description), "description matches no pattern"
    missing = sorted(_upper(rules.image_type) - _upper(one.image_type))
    yield not missing, f"image_type has no {', '.join(missing)}"
    orientation = one.orientation or "not said"
    yield not rules.orientation or orientation in rules.orientation, f"orientation {orientation}"
    yield _within(rules.slices, one.frames), f"slices {one.frames}"
    yield _within(rules.thickness_mm, one.thickness_mm), f"thickness_mm {one.thickness_mm or 'not said'}"
    yield rules.contrast in (None, one.contrast), "contrast " + ("given" if one.contrast else "not given")


def _upper(words: Iterable[str]) -> set[str]:
    return {word.upper() for word in words}


def _first_match(patterns: Sequence[str], text: str) -> int:
    """The index of the first pattern found in a text; their number where none is."""
    found = (index for index, pattern in enumerate(patterns) if re.search(pattern, text, re.IGNORECASE))
    return next(found, len(patterns))


def _any(patterns: Sequence[str], text: str) -> bool:
    return not patterns or _first_match(patterns, text) < len(patterns)


def _within(limits: tuple[float, float] | None, value: float | None) -> bool:
    return limits is None or (value is not None and limits[0] <= value <= limits[1])


def _refusal(study: str, members: Sequence[Series], left: Sequence[Series], reasons: dict[str, str]) -> str:
    name = f"study {pseudonym(study)} (a pseudonym)"
    if left:
        shown = listed([_described(one) for one in left], most=12)
        return f"{name}: {len(left)} of {len(members)} series are left: {shown}."
    shown = listed([f"{_described(one)}: {reasons[one.uid]}" for one in members], most=12)
    return f"{name}: none of {len(members)} series is left: {shown}."


def private(one: Series, text: str) -> str:
    """A text of the header, with the patient's and the study's own numbers in it as pseudonyms."""
    for number in (one.patient, one.accession):
        text = text.replace(number, pseudonym(number)) if len(number) > 2 else text
    return text


def _described(one: Series) -> str:
    what = private(one, one.description) or "no description"
    return f"number {one.number or 'none'} {one.modality} '{what}' ({one.frames} images)"

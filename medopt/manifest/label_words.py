"""What the names of labels mean: no label at all, one class in two spellings, or the absence of the finding."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.format import count_text

MISSING = frozenset(
    {"", "na", "n/a", "n.a.", "n.a", "#n/a", "#na", "<na>", "nan", "null", "?", "-", "--", ".", "unknown", "missing"}
    | {"not available", "not applicable", "not known", "unlabelled", "unlabeled", "no label", "tbd", "pending"}
)
"""Cells of a label column that mean that there is no label, in lower case. `none` is a class, or refused."""
_NUMBER = re.compile(r"([+-]?)(0|[1-9]\d*)([.,]0*)?")

_HEALTHY_TEXT = """
no none nothing neg negative absent absence false normal normals norm nor nl wnl nad healthy health well benign
control controls ctrl ctl con hc nc cn cu td clean clear intact unaffected uninfected unremarkable undiseased
inactive
uninvolved uninjured unimpaired unruptured asymptomatic wildtype wt background gesund unauffällig normalbefund sain
sano normale
"""
_HEALTHY = frozenset(_HEALTHY_TEXT.split())
_NEGATIONS_TEXT = """
no non not without absence lack free never kein keine ohne nicht sans pas sin senza
"""
_NEGATIONS = frozenset(_NEGATIONS_TEXT.split())
_NEGATED_AFTER = frozenset({"negative", "neg", "absent", "free", "-"})
_NOT_NEGATED = frozenset({"nonspecific", "nonunion"})  # findings that begin with non
_FINDINGS = "tumou?r|finding|disease|lesion|fracture|cancer|dr|covid|pneumonia|ha?emorrhage|mass|stroke|nodule|tb"
_JOINED_NEGATION = re.compile(rf"(?!{'|'.join(_NOT_NEGATED)}|none)(non\w{{3,}}|no({_FINDINGS})s?)")
_LETTERS = {"n": ("y", "p"), "f": ("t",), "-": ("+",)}  # N of Y and N, or of P and N; F of T and F
_BEFORE, _BEHIND = ("non", "no", "not", "without"), ("neg", "negative", "free", "absent")
_OF = frozenset({"of", "from", "evidence", "sign", "signs"})
_NOUNS = frozenset({"absence", "free", "lack"})  # negations with "of" or "from" only: free air is a finding
_BEGINNINGS = frozenset({"clear", "well", "background", "benign", "normal"})  # of names of findings, too


@dataclass(frozen=True, slots=True)
class LabelSpellings:
    """The class of each cell of a label column, "" where the cell means that there is none; notes for the user."""

    classes: Mapping[str, str]
    notes: tuple[str, ...] = ()


def label_key(text: str) -> str:
    """A label without case, spare blanks and number form: what is equal here is one class.

    >>> label_key(" No  Finding"), label_key("1.0")
    ('no finding', '1')
    """
    plain = " ".join(normalize("NFC", text).casefold().split())
    number = _NUMBER.fullmatch(plain)
    return str(int(number[1] + number[2])) if number else plain


def label_spellings(cells: Iterable[str], rename: Mapping[str, str] | None = None) -> LabelSpellings:
    """Which cells are one class. Its name is the most frequent spelling, or what `rename` says ("" for no label).

    Raises DataError where `none` may be a class or no label, ConfigError where `rename` names no class.

    >>> label_spellings(["Lesion", "Lesion", "lesion", "n/a"]).classes
    {'Lesion': 'Lesion', 'lesion': 'Lesion', 'n/a': ''}
    """
    count = Counter(cells)
    spellings: dict[str, list[str]] = defaultdict(list)
    for cell in sorted(count, key=lambda cell: (-count[cell], len(cell), cell)):
        spellings[label_key(cell)].append(cell)
    renamed = {label_key(old): new.strip() for old, new in (rename or {}).items()}
    names = {
        key: renamed.get(key, "" if _is_missing(key, spellings) else _class_name(key, members))
        for key, members in spellings.items()
    }
    known = sorted(name for key, name in names.items() if name and key not in renamed)
    if unknown := sorted(renamed.keys() - spellings.keys()):
        raise ConfigError(f"--rename {unknown[0]}: the source has no such label; its labels are {listed(known, 10)}.")
    if "none" in spellings.keys() - renamed.keys() and any(map(is_absence, set(known) - {names["none"]})):
        raise DataError(
            f"The label 'none' ({count_text(sum(count[cell] for cell in spellings['none']), 'row')}) stands beside "
            f"{listed(known, 10)}: it is not clear whether that means no finding or no label. Say it: --rename "
            "none=LABEL, or --rename none= to leave these scans out."
        )
    notes = []
    for key, members in spellings.items():
        if names[key] and (len(members) > 1 or (key not in renamed and members[0] != names[key])):
            texts = [f"{cell!r} ({count[cell]})" for cell in members]
            notes.append(f"These spellings are one label, {names[key]!r}: {listed(texts, 10)}.")
    return LabelSpellings({cell: names[key] for key, members in spellings.items() for cell in members}, tuple(notes))


def _is_missing(key: str, labels: Mapping[str, object]) -> bool:
    return key in MISSING and not (key == "-" and "+" in labels)


def _class_name(key: str, spellings: Sequence[str]) -> str:
    return key if _NUMBER.fullmatch(key) else " ".join(spellings[0].split())


def is_absence(label: str) -> bool:
    """Whether a name alone says that the finding is absent: a negation, or a usual word for healthy.

    >>> [is_absence(name) for name in ("non-COVID", "Uninfected", "CN", "abnormal", "not normal", "HER2-")]
    [True, True, True, False, False, True]
    """
    if _NUMBER.fullmatch(label.strip()):
        return label_key(label) == "0"
    words = _words(label)
    while len(words) > 1 and words[0].isdigit():  # 0_normal
        words = words[1:]
    if not words:
        return False
    if words[0] in _NEGATIONS and len(words) > 1 and (words[0] not in _NOUNS or words[1] in _OF):
        rest = words[2:] if words[1] in _OF and len(words) > 2 else words[1:]
        return not is_absence(" ".join(rest))
    if len(words) > 1 and words[-1] in _NEGATED_AFTER:
        return True
    text = "".join(words)
    begins = words[0] in _HEALTHY and (len(words) == 1 or words[0] not in _BEGINNINGS | _NOUNS)
    return begins or text in _HEALTHY or bool(_JOINED_NEGATION.fullmatch(words[0]))


def _words(label: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", normalize("NFC", label))
    spaced = re.sub(r"[+]ve\b", " positive", re.sub(r"-ve\b", " negative", spaced.casefold()))
    return re.findall(r"[^\W_]+|-$", spaced)


def _negates(label: str, other: str) -> bool:
    """Whether a name is the other one with a negation: noncalcified and calcified."""
    text, base = "".join(_words(label)), "".join(_words(other))
    return text not in _NOT_NEGATED and text in {
        *(f"{word}{base}" for word in _BEFORE),
        *(f"{base}{word}" for word in _BEHIND),
    }


def absent_first(labels: Sequence[str]) -> list[str] | None:
    """Two labels with the finding second; None where neither or both of them say that it is absent.

    >>> absent_first(["COVID", "non-COVID"]), absent_first(["cat", "dog"])
    (['non-COVID', 'COVID'], None)
    """
    first, second = labels
    absent = [_is_absence_of(first, second), _is_absence_of(second, first)]
    if absent == [False, False]:
        numbers = [re.match(r"\d+", label.strip()) for label in labels]
        absent = [number is not None and not int(number[0]) and all(numbers) for number in numbers]
    if absent[0] == absent[1]:
        return None
    return [first, second] if absent[0] else [second, first]


def _is_absence_of(label: str, other: str) -> bool:
    if is_absence(label) or other.strip().casefold()[:1] in _LETTERS.get(label.strip().casefold(), ()):
        return True
    return not is_absence(other) and _negates(label, other)

"""Text in every script that an installed font has: labels in Chinese, Japanese or Korean are drawn, or numbered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

USUAL = "DejaVu Sans"  # comes with matplotlib
_WIDE = (
    "cjk",
    "noto",
    "source han",
    "wenquanyi",
    "wqy",
    "fallback",
    "unifont",
    "gothic",
    "ming",
    "song",
    "hei",
    "arial",
)


@cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())


def _missing(text: str) -> frozenset[int]:
    """The characters that the usual font does not have."""
    return frozenset(ord(character) for character in text if not character.isspace()) - _characters(findfont(USUAL))


@cache
def _family_with(characters: frozenset[int]) -> str:
    """A family of installed fonts with all of these characters, those for many scripts first; empty for none."""
    fonts = {font.name: font.fname for font in fontManager.ttflist}
    wide_first = sorted(fonts, key=lambda name: (not any(word in name.lower() for word in _WIDE), name))
    for name in wide_first:
        try:
            if characters <= _characters(fonts[name]):
                return name
        except (OSError, RuntimeError):  # a font file that is damaged or gone
            continue
    return ""


def is_drawable(text: str) -> bool:
    """Whether an installed font has all characters of a text."""
    missing = _missing(text)
    return not missing or bool(_family_with(missing))


def drawn_labels(labels: Sequence[str]) -> list[str]:
    """Labels as pictures show them: as they are, or numbered from 1 where no font has their characters.

    >>> drawn_labels(["normal", "Entz\u00fcndung"])
    ['normal', 'Entz\u00fcndung']
    """
    return [label if is_drawable(label) else f"label {at}" for at, label in enumerate(labels, start=1)]


def label_legend(labels: Sequence[str]) -> str:
    """What the numbers of `drawn_labels` mean, as a sentence; empty where none is numbered."""
    pairs = [f"{drawn} is {label}" for drawn, label in zip(drawn_labels(labels), labels, strict=True) if drawn != label]
    return f"In the pictures, {', '.join(pairs)}." if pairs else ""


def choose_fonts(figure: Figure) -> None:
    """Give each text of a figure a font that has its characters; `?` stands for those that no font has."""
    for text in figure.findobj(Text):
        if not isinstance(text, Text) or not (missing := _missing(text.get_text())):
            continue
        if family := _family_with(missing):
            text.set_fontfamily([USUAL, family])
        else:
            text.set_text("".join("?" if ord(character) in missing else character for character in text.get_text()))

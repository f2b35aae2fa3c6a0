"""Labels in every script: drawn in a font that has them, else numbered."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from matplotlib.font_manager import findfont
from matplotlib.text import Text

from medopt.figures import fonts
from medopt.figures.fonts import drawn_labels, is_drawable, label_legend
from medopt.figures.style import figure_page

CJK = ["\u6b63\u5e38", "\u80ba\u708e"]


def test_labels_that_the_usual_font_has_stay() -> None:
    assert drawn_labels(["normal", "Entz\u00fcndung", "\u0430"]) == ["normal", "Entz\u00fcndung", "\u0430"]
    assert label_legend(["normal", "\u0430"]) == ""


def test_labels_that_no_font_has_are_numbered_with_a_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_family_with", lambda characters: "")
    assert drawn_labels([*CJK, "other"]) == ["label 1", "label 2", "other"]
    assert label_legend(CJK) == f"In the pictures, label 1 is {CJK[0]}, label 2 is {CJK[1]}."


def test_a_font_that_has_the_characters_is_taken() -> None:
    usual = fonts._characters(findfont(fonts.USUAL))
    others = fonts._characters(findfont("STIXGeneral")) - usual
    text = chr(min(code for code in others if chr(code).isprintable()))
    assert is_drawable(text)
    assert fonts._family_with(frozenset(map(ord, text))) != ""


def test_a_page_with_any_text_is_drawn_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with figure_page(tmp_path / "a.png", 1, f"ROC {CJK[0]}") as (axes,):
            axes.set_title(CJK[1])
            axes.plot([0, 1], label="\U000f0000 private")
            axes.legend()
    assert (tmp_path / "a.png").stat().st_size > 1000
    shown = [text.get_text() for text in axes.figure.findobj(Text)]
    assert any("private" in text for text in shown)
    assert is_drawable(CJK[1]) or "??" in shown

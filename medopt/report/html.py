"""A page: a Jinja2 template, its style and its pictures in one HTML file that needs no network."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from medopt.core.files import write_text
from medopt.core.page_style import STYLE
from medopt.report.glossary import explained


@cache
def _environment() -> Environment:
    # Everything is escaped: a site's name from a manifest is text, never markup.
    made = Environment(
        loader=PackageLoader("medopt.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.globals["style"] = STYLE
    made.filters["explained"] = explained
    return made


def picture(path: Path) -> str:
    """A PNG as a data address; empty where there is none."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""


def chart(path: Path, alt: str) -> Markup:
    """An SVG of ours as an element of the page, as wide as it was drawn and never wider than the page.

    Names that the drawing refers to are made its own, as several stand in one page; the others go.
    """
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used, own = set(re.findall(r"#([\w.-]+)", body)), path.stem
    body = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{own}-", body)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None  # matplotlib writes it
    pixels = round(float(box[1].split()[2]) * 4 / 3)
    return Markup(f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box[1]}" width="{pixels}">{body}')


def write_page(path: Path, template: str, **records: Any) -> None:
    """Render a template of this room with its records; the file is written whole or not at all."""
    write_text(path, _environment().get_template(template).render(**records))

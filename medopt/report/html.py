"""A page: a Jinja2 template, its style and its pictures in one HTML file that needs no network."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medopt.core.files import write_text


@cache
def _environment() -> Environment:
    # Everything is escaped: a site's name from a manifest is text, never markup.
    return Environment(
        loader=PackageLoader("medopt.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def picture(path: Path) -> str:
    """A PNG as a data address; empty where there is none."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""


def write_page(path: Path, template: str, **records: Any) -> None:
    """Render a template of this room with its records; the file is written whole or not at all."""
    write_text(path, _environment().get_template(template).render(**records))

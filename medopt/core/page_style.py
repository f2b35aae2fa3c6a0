"""The one style of all HTML pages: report, comparison, drift, dossier, suspects, node and the page to try."""

from __future__ import annotations

from importlib.resources import files

STYLE = (files("medopt.core") / "page.css").read_text(encoding="utf-8")
"""CSS without any resource from elsewhere, for light and dark screens and for paper."""

"""The real images that some tests look at: below MEDOPT_DATA, else ../shared/data beside the clone.

The variable is read before the tests' own environment begins (see `isolation`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from isolation import STARTED_WITH

REPO = Path(__file__).resolve().parents[1]
DATA = Path(STARTED_WITH.get("MEDOPT_DATA") or REPO.parent / "shared" / "data").absolute()


def why_absent(name: str) -> str:
    """Why the images of the folder or file `name` cannot be looked at; empty where they can."""
    return "" if (DATA / name).exists() else f"no {name} in {DATA}: set MEDOPT_DATA"


def needs(name: str) -> pytest.MarkDecorator:
    """A mark that skips a test where `name` is not below the data folder."""
    return pytest.mark.skipif(bool(why_absent(name)), reason=why_absent(name) or "here")


def real(name: str) -> Path:
    """The folder or file `name` below the data folder; skips the test where it is not."""
    if reason := why_absent(name):
        pytest.skip(reason)
    return DATA / name

"""What the user's environment holds when the tests begin, and how it is kept out of them.

This module is imported before `medopt` is, so that STARTED_WITH is what the user has set and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

STARTED_WITH = dict(os.environ)

OF_THE_USER = ("MEDOPT_", "MLFLOW_", "XDG_")
"""Variables that would steer the product: removed for the tests and for every process that they start."""

OF_THE_TESTS = "MEDOPT_TEST_"
"""Variables that steer the tests themselves (how many kills, for instance): these stay."""


def of_the_user(name: str) -> bool:
    """Whether a variable is one of the user's settings that no test may see."""
    return name.startswith(OF_THE_USER) and not name.startswith(OF_THE_TESTS)


def isolate(change: pytest.MonkeyPatch, home: Path) -> None:
    """An empty home, and no setting of the user's, in this process and its children."""
    home.mkdir(parents=True, exist_ok=True)
    for name in filter(of_the_user, STARTED_WITH):
        change.delenv(name, raising=False)
    change.setenv("HOME", str(home))
    # medopt bars MLflow's telemetry where it imports it, unless the user said otherwise: the tests report to nobody.
    change.setenv("MLFLOW_DISABLE_TELEMETRY", "true")

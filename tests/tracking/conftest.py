from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_run_is_left_open() -> Iterator[None]:
    """A test that fails within a run does not take those after it along."""
    yield
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run("KILLED")

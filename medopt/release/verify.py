"""`medopt verify`: every file unchanged, the chain the same, every golden case answered as when it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medopt.release.golden import replay
from medopt.release.layout import Kind, check_sums, read_info
from medopt.release.predictor import Predictor


def verify_release(folder: Path, threads: int = 0) -> list[dict[str, Any]]:
    """Check a release whole, and return the replayed golden cases, one row a case and model.

    Raises ReleaseError naming what is wrong.
    """
    check_sums(folder)
    info = read_info(folder)
    return replay(folder, info, all_predictors(folder, threads))


def all_predictors(folder: Path, threads: int = 0) -> list[Predictor]:
    """Every model of a release in every engine that it may run in."""
    info = read_info(folder)
    kinds: tuple[Kind, ...] = ("int8", "float")
    return [Predictor.open(folder, kind, engine, threads) for kind in kinds for engine in info.models[kind].engines]

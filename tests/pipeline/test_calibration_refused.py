"""A calibration that validation is too small for is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.pipeline.stages.prepare import refuse_early
from medopt.training.job import PreparedSplit


def test_isotonic_needs_enough_validation_cases(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study(evaluation={"calibration": "isotonic"})
    sets = {"val": tiny_set(tmp_path, study, 12, "val")}
    with pytest.raises(ConfigError, match=r"validation holds 12.*Set it to temperature"):
        refuse_early(study, sets)  # type: ignore[arg-type]
    refuse_early(tiny_study(), sets)  # type: ignore[arg-type]

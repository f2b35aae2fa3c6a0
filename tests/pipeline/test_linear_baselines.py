"""No more training images than a linear model is fitted on are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medopt.config import Study
from medopt.core.records import Case
from medopt.pipeline import linear_baselines
from medopt.training.job import PreparedSplit


def test_a_large_training_split_is_drawn_from_before_its_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def features(files: list[Path]) -> np.ndarray:
        read.append(len(files))
        return np.random.default_rng(len(files)).standard_normal((len(files), 5))

    monkeypatch.setattr(linear_baselines, "ROWS", 20)
    monkeypatch.setattr(linear_baselines, "thumbnail_features", features)
    cases = [Case(f"c{at}", f"p{at}", f"{at}.png", (at % 2,), "train") for at in range(100)]
    part = PreparedSplit(cases, [Path(f"{at}.npy") for at in range(100)])
    study = Study.model_validate(
        {"name": "s", "question": "?", "data": {"manifest": "m.csv", "labels": ["a", "b"]}, "prepare": {"size": [8, 8]}}
    )
    found = linear_baselines.thumbnail_baseline(study, {"train": part, "val": part}, ("train", "val"))
    assert read == [20, 100] and found.features["train"].shape == (20, 1, 5)

"""Predictions drawn from a seed, for the tests of metrics, evaluation and figures."""

from collections.abc import Callable

import numpy as np
import pytest

from medopt.core.records import Predictions


def draw(
    cases: int = 120,
    outputs: int = 1,
    seed: int = 0,
    *,
    task: str = "binary",
    patients: int | None = None,
    separation: float = 1.5,
    decimals: int | None = None,
) -> Predictions:
    """Gaussian scores, `separation` standard deviations between the classes; `decimals` makes ties."""
    generator = np.random.default_rng(seed)
    if task == "multiclass":
        labels = generator.integers(outputs, size=cases)
        logits = generator.normal(size=(cases, outputs)) + separation * (labels[:, None] == np.arange(outputs))
    else:
        table = (generator.random((cases, outputs)) < 0.35).astype(np.int64)
        logits = generator.normal(size=(cases, outputs)) + separation * table
        labels = table if task == "multilabel" else table[:, 0]
    if decimals is not None:
        logits = logits.round(decimals)
    owner = np.arange(cases) if patients is None else generator.integers(patients, size=cases)
    return Predictions(
        model="float",
        case_id=np.array([f"case{index:05d}" for index in range(cases)]),
        patient_id=np.array([f"patient{index:05d}" for index in owner]),
        site=np.array(["north", "south"])[generator.integers(2, size=cases)],
        split=np.full(cases, "test"),
        labels=labels,
        logits=logits,
    )


@pytest.fixture
def drawn() -> Callable[..., Predictions]:
    return draw

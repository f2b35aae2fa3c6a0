from __future__ import annotations

import math

import pytest

from medopt.training.early_stopping import best_epoch, improvements, should_stop

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "marks", "best"),
    [
        ([], [], None),
        ([NAN, NAN], [False, False], None),
        ([NAN, 0.5, NAN, 0.5, 0.6], [False, True, False, False, True], 4),
        ([0.7, 0.7, 0.6], [True, False, False], 0),
        ([-math.inf, -2.0, -1.0], [False, True, True], 2),
    ],
)
def test_only_a_higher_number_is_progress(scores: list[float], marks: list[bool], best: int | None) -> None:
    assert improvements(scores) == marks
    assert best_epoch(scores) == best


@pytest.mark.parametrize(
    ("scores", "stop"),
    [
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.4], False),
        ([0.5, 0.4, 0.4, 0.4], True),
        ([0.5, 0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.4, 0.6], False),
        ([0.5, NAN, NAN, NAN], True),
        ([NAN, NAN, NAN], True),
        ([NAN, NAN, 0.1], False),
        ([], False),
    ],
)
def test_three_epochs_without_progress_stop(scores: list[float], stop: bool) -> None:
    assert should_stop(scores, 3) is stop

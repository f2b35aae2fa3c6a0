from __future__ import annotations

import math

import pytest

from medopt.training.early_stopping import first_plateau, improvements, should_stop

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "marks"),
    [
        ([], []),
        ([NAN, NAN], [False, False]),
        ([NAN, 0.5, NAN, 0.5, 0.6], [False, True, False, False, True]),
        ([0.7, 0.7, 0.6], [True, False, False]),
        ([-math.inf, -2.0, -1.0], [False, True, True]),
    ],
)
def test_only_a_higher_number_is_progress(scores: list[float], marks: list[bool]) -> None:
    assert improvements(scores) == marks


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


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([], 1, None),
        ([0.5], 1, None),
        ([0.5, 0.4], 1, 2),
        ([0.5, 0.5], 1, 2),  # a tie is no progress
        ([0.5, 0.4, 0.6, 0.5], 2, None),  # counted anew after each progress
        ([0.5, 0.4, 0.6, 0.5, 0.6], 2, 5),
        ([0.5, 0.4, 0.3, 0.6, 0.7], 2, 3),  # the first time, whatever comes later
        ([NAN, NAN], 2, 2),  # what is no number is no progress, from the first epoch on
        ([0.5, 0.4, 0.3], 3, None),
        ([0.5, 0.4, 0.3, 0.2], 3, 4),
    ],
)
def test_the_first_plateau_by_hand(scores, patience, epochs):
    assert first_plateau(scores, patience) == epochs

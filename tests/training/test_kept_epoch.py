"""Which epoch's weights are kept: by hand, and in a simulation of a validation split that is small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medopt.config import Training
from medopt.core.records import EpochRecord
from medopt.training.kept_epoch import is_annealed, kept_epoch, smoothed_best

NAN = math.nan


def history(scores: Sequence[float], losses: Sequence[float] | None = None) -> list[EpochRecord]:
    losses = losses or [1.0] * len(scores)
    return [
        EpochRecord(n, 1, loss, score, 0.1, 1, 1, 0) for n, (score, loss) in enumerate(zip(scores, losses, strict=True))
    ]


def training(schedule: str, epochs: int = 8, keep: str = "auto", **more: object) -> Training:
    return Training.model_validate({"epochs": epochs, "keep": keep, "schedule": {"name": schedule, **more}})


@pytest.mark.parametrize(
    ("schedule", "epochs", "annealed"),
    [
        ({"name": "one_cycle"}, 8, True),
        ({"name": "one_cycle"}, 1, True),
        ({"name": "cosine"}, 60, True),
        ({"name": "cosine", "eta_min": 2e-3}, 60, False),  # as high as the rate: it stays where it is
        ({"name": "cosine", "eta_min": 1.8e-4}, 60, True),  # 9 % of the rate
        ({"name": "cosine", "eta_min": 2.2e-4}, 60, False),  # 11 %
        ({"name": "cosine_restarts", "t_0": 2, "t_mult": 2}, 6, True),  # the end of its second cycle
        ({"name": "cosine_restarts", "t_0": 2, "t_mult": 2}, 8, False),  # in the middle of its third
        ({"name": "constant"}, 8, False),
        ({"name": "plateau"}, 8, False),
    ],
)
def test_which_schedules_come_to_rest(schedule: dict[str, object], epochs: int, annealed: bool) -> None:
    assert is_annealed(Training.model_validate({"epochs": epochs, "schedule": schedule})) is annealed


BEST = "the best by validation AUC as the mean of 5 epochs"
SCORES = [0.5, 0.6, 0.95, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.6]  # the highest is alone; the best five end in epoch 9


@pytest.mark.parametrize(
    ("schedule", "keep", "epochs", "kept", "words"),
    [
        ("one_cycle", "auto", 10, 9, "the last one, as the schedule one_cycle ends at its lowest rate"),
        ("one_cycle", "best", 10, 8, BEST),
        ("one_cycle", "best", 20, 8, BEST),
        ("one_cycle", "auto", 20, 8, f"{BEST}, as training stopped before the schedule one_cycle ended"),
        ("constant", "auto", 10, 8, BEST),
        ("constant", "auto", 20, 8, BEST),
        ("plateau", "auto", 20, 8, BEST),
        ("constant", "last", 20, 9, "the last one, as training.keep asks"),
    ],
)
def test_the_kept_epoch_and_why(schedule: str, keep: str, epochs: int, kept: int, words: str) -> None:
    found = kept_epoch(training(schedule, epochs, keep), history(SCORES))
    assert found is not None and (found.index, found.reason) == (kept, words)


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([], [], None),
        ([NAN, NAN], [1, 1], None),
        ([0.9], [1], 0),
        ([0.9, 0.5, 0.9], [1, 1, 1], 0),  # fewer than five: the mean of those that there are
        ([1.0, 0.5, 0.5, 0.5, 0.5, 0.5], [1] * 6, 4),  # the first with five epochs, not the lucky first
        ([1.0] * 8, [8, 7, 6, 5, 4, 3, 4, 8], 6),  # equal: the lowest mean loss, 4.4
        ([1.0] * 7, [1] * 7, 6),  # equal in both: the later one
        ([0.1, 0.2, 0.3, 0.1, 0.2, 0.1, 0.2, 0.3, 0.1, 0.2], [1] * 10, 9),  # sums in another order are no difference
        ([0.7, 0.7, 0.1, 0.5, 0.9, 0.7], [1] * 6, 5),  # added up in turn, the second five give less
        ([0.6] * 5 + [NAN], [1] * 6, 4),  # what is no number is never kept
        ([0.6, NAN, 0.6, 0.6, 0.6, 0.7], [1] * 6, 5),
        ([0.6] * 5 + [0.6], [1] * 5 + [NAN], 5),
        ([-math.inf, -2.0, -1.0], [math.inf, 2, 1], 2),
    ],
)
def test_the_smoothed_best_by_hand(scores: list[float], losses: list[float], best: int | None) -> None:
    assert smoothed_best(scores, losses) == best


def test_a_last_epoch_without_a_number_is_not_kept() -> None:
    found = kept_epoch(training("one_cycle", 7), history([0.5, 0.6, 0.6, 0.6, 0.7, 0.7, NAN]))
    assert found is not None and found.index == 5
    assert kept_epoch(training("one_cycle", 2), history([NAN, NAN])) is None


def test_the_choice_of_a_prefix_is_never_overturned_by_an_earlier_epoch() -> None:
    """Weights are kept as training goes on: an epoch that was passed over can never be asked for later."""
    draws = np.random.default_rng(0)
    for _ in range(200):
        scores, losses = draws.integers(0, 3, 12) / 3, draws.integers(0, 3, 12) / 3
        chosen = [smoothed_best(scores[:end].tolist(), losses[:end].tolist()) for end in range(1, 13)]
        assert all(new in (old, place) for place, (old, new) in enumerate(pairwise(chosen), start=1))


def test_choosing_by_a_small_validation_split_flatters_and_gains_nothing() -> None:
    """Sixty epochs of models that get better and then stay: the last is as good as the "best", and says so itself."""
    draws = np.random.default_rng(1)
    labels = np.repeat([0, 1], 33)
    flattery: dict[str, list[float]] = {"highest": [], "kept": []}
    gain = []
    for _ in range(60):
        distances = np.minimum(1.3, np.linspace(0.2, 2.4, 60)) + draws.normal(0, 0.05, 60)  # of the classes' means
        noise, moving = draws.normal(size=66), draws.normal(size=(60, 66))
        scores = [
            float(roc_auc_score(labels, distance * labels + 0.8 * noise + 0.6 * own))
            for distance, own in zip(distances, moving, strict=True)
        ]
        true = [0.5 * (1 + math.erf(distance / 2)) for distance in distances]
        common = float(np.mean(scores[40:])) - float(np.mean(true[40:]))  # the luck of the split, the same for all
        kept = kept_epoch(training("cosine", 60), history(scores))
        assert kept is not None and kept.index == 59
        highest = int(np.argmax(scores))
        flattery["highest"].append(scores[highest] - true[highest] - common)
        flattery["kept"].append(scores[59] - true[59] - common)
        gain.append(true[highest] - true[59])
    assert np.mean(flattery["highest"]) > 0.02  # .021 in nested cross-validation of a real study
    assert abs(np.mean(flattery["kept"])) < 0.01 and abs(np.mean(gain)) < 0.01

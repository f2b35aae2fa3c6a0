from __future__ import annotations

import numpy as np

from medopt.metrics.nearest_neighbours import neighbour_scores

FEATURES = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
TARGETS = np.array([[1.0], [1.0], [0.0], [0.0]])


def test_the_nearer_neighbours_decide() -> None:
    scores = neighbour_scores(FEATURES, TARGETS, np.array([[2.0, 0.0], [-2.0, 0.0]]), neighbours=4)
    assert scores[0, 0] > 0.99
    assert scores[1, 0] < 0.01


def test_an_image_of_the_same_patient_does_not_vote() -> None:
    same = np.array([[True, True, False, False]])
    assert neighbour_scores(FEATURES, TARGETS, FEATURES[:1], same)[0, 0] == 0


def test_without_a_voter_the_score_is_the_share() -> None:
    assert neighbour_scores(FEATURES, TARGETS, FEATURES[:1], np.ones((1, 4), bool))[0, 0] == 0.5

"""Confident learning against cleanlab, and labels that were turned on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_normalized_margin_for_each_label
from scipy.special import softmax

from medopt.metrics.label_issues import label_issues


def drawn(seed: int, classes: int, noise: float = 0.08) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=600)
    probability = softmax(random.normal(size=(600, classes)) + 3 * np.eye(classes)[truth], axis=1)
    turned = random.random(600) < noise
    return probability, np.where(turned, (truth + 1) % classes, truth), turned


@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (1, 2), (2, 3), (3, 5)])
def test_suspects_and_their_order_are_those_of_cleanlab(seed: int, classes: int) -> None:
    probability, given, _ = drawn(seed, classes)
    found = label_issues(probability, given)
    peer = find_label_issues(
        given,
        probability,
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        min_examples_per_class=0,
        n_jobs=1,
    )
    mine = np.argsort(np.where(found.rank > 0, found.rank, 10**6))[: int((found.rank > 0).sum())]
    assert 20 < len(mine) < 200
    assert np.array_equal(mine, peer)
    assert (found.margin + 1) / 2 == pytest.approx(get_normalized_margin_for_each_label(given, probability))


def test_turned_labels_are_found_and_come_first() -> None:
    probability, given, turned = drawn(5, 3)
    found = label_issues(probability, given)
    first = np.argsort(np.where(found.rank > 0, found.rank, 10**6))[:30]
    assert turned[first].mean() > 0.95
    assert (found.rank[turned] > 0).mean() > 0.6 and (found.rank[~turned] > 0).mean() < 0.05


def test_a_class_without_cases_is_never_suggested() -> None:
    probability = np.array([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    found = label_issues(probability, np.array([0, 0, 1]))
    assert found.rank.tolist() == [0, 0, 0] and found.suggested.tolist() == [0, 0, 1]

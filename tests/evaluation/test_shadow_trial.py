"""A shadow trial's figures against formulas from the literature, and what several scans of a patient do to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from medopt.evaluation.paired_shares import share_difference
from medopt.evaluation.shadow_trial import (
    GivenAnswer,
    ScanPair,
    StudyCost,
    by_group,
    changed_decisions,
    paired_costs,
    trial_figures,
)
from medopt.metrics.differences import mean_over_patients


def given(probability: float, *, declined: str = "") -> GivenAnswer:
    decision = "" if declined else "ill" if probability >= 0.5 else "well"
    return GivenAnswer(decision, declined, {"well": 1 - probability, "ill": probability}, (0.0,))


def pairs(before: Sequence[float], after: Sequence[float], patients: Sequence[str] | None = None) -> list[ScanPair]:
    names = [f"p{place}" for place in range(len(before))] if patients is None else patients
    return [
        ScanPair(f"study{place}", f"scan{place}", names[place], f"s{place % 2}", "d", given(old), given(new))
        for place, (old, new) in enumerate(zip(before, after, strict=True))
    ]


def test_newcombes_paired_interval_of_table_ii() -> None:
    """Newcombe 1998, Statist. Med. 17:2635, table II: a, b, c, d = 36, 12, 2, 0; method 10: 0.0569 to 0.3404."""
    first = np.array([True] * 36 + [True] * 12 + [False] * 2)
    second = np.array([True] * 36 + [False] * 12 + [True] * 2)
    found = share_difference(second, first, np.arange(50), 0.95)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-4), pytest.approx(0.3404, abs=5e-4))


def test_a_mean_of_one_value_a_patient_is_students() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 25)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_over_patients(values, np.arange(25), 0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_twice_the_scans_of_the_same_patients_are_no_more_witnesses() -> None:
    values = np.random.default_rng(1).normal(0, 1, 20)
    once = mean_over_patients(values, np.arange(20), 0.95)
    twice = mean_over_patients(np.repeat(values, 2), np.repeat(np.arange(20), 2), 0.95)
    assert (twice.low, twice.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert mean_over_patients(values, np.zeros(20, np.intp), 0.95).low is None

    before, after = [0.9, 0.1] * 10, [0.9, 0.1] * 8 + [0.1, 0.9] * 2
    single = trial_figures(pairs(before, after), ["ill"], 0.95)
    double = trial_figures(
        pairs([*before, *before], [*after, *after], [f"p{place % 20}" for place in range(40)]), ["ill"], 0.95
    )
    assert double.patients == single.patients == 20
    assert double.agreement.value == single.agreement.value == 0.8
    assert double.agreement.low == pytest.approx(single.agreement.low, abs=0.02)


def test_declined_scans_have_no_part_in_agreement_and_shifts() -> None:
    found = pairs([0.9, 0.2, 0.7, 0.4], [0.8, 0.6, 0.7, 0.4])
    found[2] = ScanPair("study2", "scan2", "p2", "s0", "d", given(0.7), given(0.1, declined="it is blank"))
    figures = trial_figures(found, ["ill"], 0.95)
    assert (figures.scans, figures.agreement.n, figures.agreement.value) == (4, 3, pytest.approx(2 / 3))
    assert (figures.declined.present.value, figures.declined.candidate.value) == (0.0, 0.25)
    shift = figures.findings["ill"]
    assert shift.probability.value == pytest.approx((-0.1 + 0.4 + 0) / 3) and shift.largest == pytest.approx(0.4)
    assert (shift.positive.present.value, shift.positive.candidate.value) == (
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
    )
    changed = changed_decisions(found, ["ill"])
    assert [(one.scan, one.present, one.candidate, one.shift) for one in changed] == [
        ("scan2", "ill", "declined", None),
        ("scan1", "well", "ill", pytest.approx(0.4)),
    ]


def test_groups_are_shown_where_there_are_several() -> None:
    found = pairs([0.9, 0.2], [0.8, 0.6])
    assert list(by_group(found, lambda pair: pair.site, ["ill"], 0.95)) == ["s0", "s1"]
    assert by_group(found, lambda pair: pair.device, ["ill"], 0.95) == {}
    assert list(by_group(found, lambda pair: pair.site[:1] * int(pair.site[1]), [], 0.95)) == ["not known", "s"]


def test_nothing_to_compare_is_not_defined_and_no_error() -> None:
    figures = trial_figures([], ["ill"], 0.95)
    assert (figures.scans, figures.patients, figures.agreement.value) == (0, 0, None)
    assert figures.declined.difference.value is None and paired_costs([], 0.95) == {}


def test_costs_are_means_of_studies_with_their_paired_difference() -> None:
    costs = [StudyCost(f"p{place}", (1.0 + place, 2.0, 100), (1.5 + place, 2.0, 90)) for place in range(4)]
    found = paired_costs(costs, 0.95)
    assert (found["cpu_seconds"].present, found["cpu_seconds"].candidate) == (2.5, 3.0)
    assert (found["cpu_seconds"].difference.low, found["memory_mb"].difference.high) == (0.5, -10)

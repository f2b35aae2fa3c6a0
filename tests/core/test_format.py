"""An estimate in words: one form for the whole product."""

from __future__ import annotations

from medopt.core.format import format_difference, format_estimate, format_share
from medopt.core.records import Estimate


def test_a_figure_stands_with_its_interval() -> None:
    estimate = Estimate(0.91234, 0.8741, 0.9409, 20)
    assert format_estimate(estimate) == "0.912 (0.874 to 0.941)"
    assert format_estimate(estimate, 2) == "0.91 (0.87 to 0.94)"
    assert format_share(estimate) == "91.2 % (87.4 to 94.1)"


def test_without_an_interval_the_value_stands_alone_and_without_a_value_it_says_so() -> None:
    assert format_estimate(Estimate(1.0, None, None, 20, "no interval")) == "1.000"
    assert format_estimate(Estimate(None, None, None, 20, "one class")) == "not defined"
    assert format_share(None) == "not defined"


def test_a_difference_has_its_sign_and_is_never_minus_zero() -> None:
    assert format_difference(Estimate(-0.012, -0.0314, 0.0042, 20)) == "-0.012 (-0.031 to +0.004)"
    assert format_difference(Estimate(-0.0001, -0.0002, 0.0, 20)) == "+0.000 (+0.000 to +0.000)"

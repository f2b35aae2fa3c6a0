"""What service is held against: aggregates that tell of nobody, and an index that chance does not set off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from medopt.core.errors import ReleaseError
from medopt.release.drift_reference import MIN_SCANS, REST, Observed, Reference, compare


def of(values: np.ndarray) -> Reference:
    return Reference.of(len(values), Observed({"score": values}))


def test_an_unchanged_month_is_rarely_called_changed() -> None:
    random = np.random.default_rng(0)
    reference = of(random.beta(1, 3, 200))
    verdicts = [compare(reference, Observed({"score": random.beta(1, 3, 60)}))[0].verdict for _ in range(200)]
    assert verdicts.count("stable") >= 180


def test_another_distribution_is_found() -> None:
    random = np.random.default_rng(1)
    (found,) = compare(of(random.beta(1, 3, 300)), Observed({"score": random.beta(3, 1, 100)}))
    assert found.verdict == "drifted" and found.p is not None and found.p < 1e-6
    assert sum(found.before) == pytest.approx(1) and sum(found.now) == pytest.approx(1)


def test_the_distance_is_kolmogorovs_and_smirnovs_but_for_what_quantiles_lose() -> None:
    random = np.random.default_rng(2)
    before, now = random.normal(size=400), random.normal(0.4, 1.2, 150)
    (found,) = compare(of(before), Observed({"score": now}))
    oracle = ks_2samp(before, now)
    assert found.distance == pytest.approx(oracle.statistic, abs=0.02)
    assert found.p == pytest.approx(oracle.pvalue, rel=0.5)


def test_the_index_of_groups_is_the_sum_of_the_shares_logarithms() -> None:
    before, now = ["a"] * 600 + ["b"] * 400, ["a"] * 300 + ["b"] * 700
    (found,) = compare(Reference.of(1000, Observed(groups={"device": before})), Observed(groups={"device": now}))
    assert found.psi == pytest.approx(0.3 * np.log(0.6 / 0.3) + 0.3 * np.log(0.7 / 0.4), rel=0.01)
    assert (found.verdict, found.bins) == ("drifted", ("a", "b"))


def test_a_device_that_validation_did_not_have_is_drift() -> None:
    reference = Reference.of(100, Observed(groups={"scanner": ["X"] * 100}))
    (found,) = compare(reference, Observed(groups={"scanner": ["X"] * 20 + ["new"] * 20}))
    assert found.verdict == "drifted" and found.bins == ("X", REST)


def test_rare_groups_and_unknown_ones_are_not_told() -> None:
    groups = ["common"] * 40 + ["rare"] * 2 + ["odd"] + [""] * 7
    reference = Reference.of(50, Observed(groups={"view": groups}))
    assert reference.groups["view"].counts == {"common": 40, REST: 3}
    assert "rare" not in reference.model_dump_json()


def test_too_few_scans_give_no_verdict_and_unknown_columns_no_row() -> None:
    random = np.random.default_rng(3)
    reference = of(random.normal(size=100))
    (found,) = compare(reference, Observed({"score": random.normal(size=MIN_SCANS - 1)}))
    assert (found.verdict, found.psi) == ("too few scans", None)
    assert compare(reference, Observed({"other": random.normal(size=100)})) == []
    assert of(random.normal(size=MIN_SCANS - 1)).numbers == {}


def test_a_number_that_never_varied_is_compared_all_the_same() -> None:
    reference = of(np.zeros(50))
    assert compare(reference, Observed({"score": np.zeros(40)}))[0].verdict == "stable"
    assert compare(reference, Observed({"score": np.full(40, -1.0)}))[0].verdict == "drifted"


def test_a_release_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="nothing to compare service with"):
        Reference.read(tmp_path)

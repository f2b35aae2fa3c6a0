"""Splits: no patient in two, every class in each, the shares that were asked for, the same for the same seed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medopt.core.errors import ConfigError, DataError
from medopt.core.records import SPLITS
from medopt.manifest.splits import SplitRules, assign_splits, splits_of_folds
from medopt.manifest.stratified_draw import draw_parts, group_by_patient


def one_hot(codes: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    return np.eye(classes, dtype=bool)[codes]


def none(count: int) -> NDArray[np.str_]:
    return np.full(count, "")


@st.composite
def cohorts(draw_from: st.DrawFn, mixed: bool) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.str_], int]:
    """Patients with a class (mixed: each row its own), one or two sites, one to four rows each."""
    classes = draw_from(st.integers(2, 4))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    count = draw_from(st.integers(3 * classes, 120))
    label = rng.permutation(np.concatenate([np.repeat(np.arange(classes), 3), rng.integers(0, classes, count)]))
    site = rng.integers(0, 2, len(label))
    owner = np.repeat(np.arange(len(label)), rng.integers(1, 5, len(label)))
    codes = label[owner]
    if mixed:
        codes = np.where(rng.random(len(owner)) < 0.3, rng.integers(0, classes, len(owner)), codes)
    names = np.array([f"p{at:03d}" for at in range(len(label))])
    return names[owner], codes, np.array(["north", "south"])[site[owner]], classes


@given(cohorts(mixed=False), st.integers(0, 9), st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0, 0.2)]))
@settings(max_examples=60, deadline=None)
def test_patients_stay_whole_every_class_is_everywhere_and_shares_hold(cohort, seed, shares):
    patients, codes, sites, classes = cohort
    rules = SplitRules(shares, seed)
    found = assign_splits(patients, one_hot(codes, classes), sites, none(len(codes)), rules, list("abcd")[:classes])
    for patient in set(patients.tolist()):
        assert len(set(found.split[patients == patient].tolist())) == 1
    for split, share in zip(SPLITS, shares, strict=True):
        inside = found.split == split
        assert set(codes[inside].tolist()) == (set(range(classes)) if share else set())
        for code in range(classes):
            of_class = len(set(patients[codes == code].tolist()))
            here = len(set(patients[inside & (codes == code)].tolist()))
            assert abs(here - share * of_class) < 2  # whole patients, and at least one


@given(cohorts(mixed=True), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_patients_with_several_classes(cohort, seed):
    patients, codes, sites, classes = cohort
    assume(all(len(set(patients[codes == code].tolist())) > 3 for code in range(classes)))
    found = assign_splits(
        patients, one_hot(codes, classes), sites, none(len(codes)), SplitRules(seed=seed), list("abcd")[:classes]
    )
    seen = dict(zip(patients.tolist(), found.split.tolist(), strict=True))
    assert [seen[patient] for patient in patients.tolist()] == found.split.tolist()
    assert all(set(codes[found.split == split].tolist()) == set(range(classes)) for split in SPLITS)


@given(cohorts(mixed=True), st.integers(0, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_same_seed_gives_the_same_splits_whatever_the_order_of_the_rows(cohort, seed, shuffle):
    patients, codes, sites, classes = cohort
    order = np.random.default_rng(shuffle).permutation(len(codes))
    labels, names, rules = one_hot(codes, classes), list("abcd")[:classes], SplitRules(seed=seed)
    assume(all(len(set(patients[codes == code].tolist())) > 3 for code in range(classes)))
    first = assign_splits(patients, labels, sites, none(len(codes)), rules, names).split
    again = assign_splits(patients[order], labels[order], sites[order], none(len(codes)), rules, names).split
    assert again.tolist() == first[order].tolist()


def test_another_seed_gives_other_splits_of_the_same_shares():
    patients = np.array([f"{at:03d}" for at in range(200)])
    labels = one_hot(np.arange(200) % 2, 2)
    first, second = (
        assign_splits(patients, labels, none(200), none(200), SplitRules(seed=seed), "ab").split for seed in (0, 1)
    )
    assert (first != second).any()
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_every_site_gets_close_to_the_shares():
    rng = np.random.default_rng(0)
    patients = np.array([f"{at:04d}" for at in range(1000)])
    sites = np.array(["large", "middle", "small"])[rng.choice(3, 1000, p=[0.7, 0.2, 0.1])]
    split = assign_splits(patients, one_hot(rng.integers(0, 2, 1000), 2), sites, none(1000), SplitRules(), "ab").split
    for site in ("large", "middle", "small"):
        for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
            assert abs((split[sites == site] == name).mean() - share) < 0.03


def test_a_class_with_too_few_patients_is_refused_with_its_count():
    patients = np.array([f"{at}" for at in range(9)] + ["0"])
    codes = np.array([1, 1] + [0] * 7 + [1])
    with pytest.raises(DataError, match=r"too few patients for 3 parts .*: rare has 2, of 9 in all\."):
        assign_splits(patients, one_hot(codes, 2), none(10), none(10), SplitRules(), ["common", "rare"])


def test_folds_test_every_patient_once_and_validate_on_the_next():
    patients = np.array([f"{at // 2:03d}" for at in range(120)])
    labels = one_hot((np.arange(120) // 2) % 2, 2)
    runs = [assign_splits(patients, labels, none(120), none(120), SplitRules(folds=5, fold=k), "ab") for k in range(5)]
    assert all((run.fold == runs[0].fold).all() for run in runs)
    assert sum((run.split == "test").astype(int) for run in runs).tolist() == [1] * 120
    for k, run in enumerate(runs):
        assert (run.fold[run.split == "test"] == k).all()
        assert (run.fold[run.split == "val"] == (k + 1) % 5).all()
        assert len(set(patients[run.split == "test"].tolist())) == 12


def test_a_held_out_site_is_the_test_with_all_of_its_patients():
    patients = np.array([f"{at:02d}" for at in range(40)] + ["00"])
    sites = np.array(["north"] * 20 + ["south"] * 20 + ["south"])
    labels = one_hot(np.arange(41) % 2, 2)
    found = assign_splits(patients, labels, sites, none(41), SplitRules(hold_out="north"), "ab")
    assert (found.split[:20] == "test").all()
    assert found.split[40] == "test"
    assert set(found.split[20:40].tolist()) == {"train", "val"}
    assert found.notes == ("1 row of other sites in the test, too: the patients were at north.",)
    with pytest.raises(DataError, match=r"'west' is not a site of this source. Its sites: north; south"):
        assign_splits(patients, labels, sites, none(41), SplitRules(hold_out="west"), "ab")
    codes = np.r_[np.zeros(20, int), np.arange(21) % 2]
    with pytest.raises(DataError, match=r"north has no case of b in 20 patients"):
        assign_splits(patients, one_hot(codes, 2), sites, none(41), SplitRules(hold_out="north"), "ab")


def test_the_sources_own_splits_are_kept_and_a_missing_val_is_carved_from_train():
    patients = np.array([f"{at:03d}" for at in range(120)])
    own = np.array(["train"] * 80 + ["test"] * 40)
    labels = one_hot(np.arange(120) % 2, 2)
    found = assign_splits(patients, labels, none(120), own, SplitRules((0.6, 0.2, 0.2)), "ab")
    assert (found.split[80:] == "test").all()
    assert [(found.split == name).sum() for name in SPLITS] == [60, 20, 40]
    assert "val drawn from train" in found.how
    with pytest.raises(ConfigError, match="need --resplit"):
        assign_splits(patients, labels, none(120), own, SplitRules(folds=5), "ab")
    anew = assign_splits(patients, labels, none(120), own, SplitRules(folds=4, resplit=True), "ab")
    assert (anew.split == "test").sum() == 30
    with pytest.raises(DataError, match="1 of 119 patients are in more than one"):
        assign_splits(np.r_[patients[:119], ["000"]], labels, none(120), own, SplitRules(), "ab")


def test_the_sources_own_folds():
    patients, folds = np.array(list("abcdef")), np.array([0, 0, 1, 1, 2, 2])
    own = np.full(6, "train")
    found = splits_of_folds(patients, own, folds, 2)
    assert found.split.tolist() == ["val", "val", "train", "train", "test", "test"]
    own[5] = "test"
    assert splits_of_folds(patients, own, folds, 0).split.tolist() == ["val", "val", "train", "train", "train", "test"]
    with pytest.raises(ConfigError, match=r"--fold 7: the source has the folds 0, 1, 2"):
        splits_of_folds(patients, own, folds, 7)
    with pytest.raises(DataError, match="several of the source's own folds"):
        splits_of_folds(np.array(list("abacde")), np.full(6, "train"), folds, 0)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"shares": (0.7, 0.2, 0.2)}, "sum to 1; got 0.7/0.2/0.2"),
        ({"shares": (1.2, -0.1, -0.1)}, "sum to 1"),
        ({"folds": 2}, "--folds takes 3 or more"),
        ({"folds": 5, "fold": 5}, "got --folds 5 --fold 5"),
        ({"folds": 5, "hold_out": "x"}, "exclude each other"),
    ],
)
def test_rules_that_cannot_be(rules, said):
    with pytest.raises(ConfigError, match=said):
        SplitRules(**rules)


def test_a_patient_is_moved_where_a_class_would_be_missing():
    """Class c stands only beside a and b, whose patients are dealt first."""
    has = np.zeros((30, 3), dtype=bool)
    has[:14, 0], has[14:28, 1], has[28:, 0] = True, True, True
    has[[0, 14, 28, 29], 2] = True
    groups = group_by_patient(np.array([f"{at:02d}" for at in range(30)]), has, none(30))
    for seed in range(20):
        parts = draw_parts(groups, (0.7, 0.15, 0.15), seed, "abc")
        assert all(has[parts == part].any(axis=0).all() for part in range(3))


def test_a_hundred_thousand_rows_take_well_under_a_second_or_two():
    rng = np.random.default_rng(0)
    patients = np.array([f"{at:016x}" for at in rng.integers(0, 40_000, 100_000)])
    sites = np.array([f"s{at}" for at in range(12)])[rng.integers(0, 12, 100_000)]
    labels = one_hot(rng.choice(3, 100_000, p=[0.9, 0.09, 0.01]), 3)
    begun = time.perf_counter()
    split = assign_splits(patients, labels, sites, none(100_000), SplitRules(), "abc").split
    assert time.perf_counter() - begun < 5  # 0.15 s on a quiet machine; quadratic work would take minutes
    assert abs((split == "train").mean() - 0.7) < 0.01


def owner(others: int, owned: int) -> tuple[Any, Any, Any]:
    """Patients (N,), labels (N, 2) and sites: one patient has `owned` images, `others` have one each."""
    patients = np.array(["big"] * owned + [f"p{at}" for at in range(others)])
    labels = np.eye(2, dtype=bool)[np.arange(len(patients)) % 2]
    return patients, labels, np.array(["a"] * len(patients))


@pytest.mark.parametrize("seed", range(8))
def test_a_patient_larger_than_a_share_is_in_train_and_the_real_shares_are_said(seed):
    patients, labels, sites = owner(8, 32)
    rules = SplitRules(seed=seed)
    found = assign_splits(patients, labels, sites, np.array([""] * 40), rules, ["no", "yes"])
    assert set(found.split[patients == "big"].tolist()) == {"train"}
    assert [(found.split == name).sum() for name in SPLITS] == [32, 4, 4]
    assert "of the images 0.8/0.1/0.1" in found.how
    assert "hold 0.8/0.1/0.1 of the images" in found.notes[0]


@pytest.mark.parametrize("seed", range(8))
def test_shares_are_of_images_where_patients_have_different_numbers(seed):
    rng = np.random.default_rng(seed)
    size = np.minimum(rng.zipf(1.6, 60), 60)
    patients = np.repeat([f"p{at}" for at in range(60)], size)
    labels = np.eye(2, dtype=bool)[np.repeat(np.arange(60) % 2, size)]
    sites = np.array(["a"] * len(patients))
    found = assign_splits(patients, labels, sites, np.array([""] * len(patients)), SplitRules(seed=seed), ["n", "y"])
    biggest = size.max() / size.sum()
    for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        assert abs((found.split == name).mean() - share) < 0.04 + max(0, biggest - 0.7)
        assert labels[found.split == name].any(0).all()


def test_folds_and_the_rest_of_a_held_out_site_are_of_images_too():
    patients, labels, sites = owner(40, 10)
    folds = assign_splits(patients, labels, sites, np.array([""] * 50), SplitRules(folds=5), ["no", "yes"])
    assert [int((folds.fold == at).sum()) for at in range(5)] == [10] * 5
    patients, labels, sites = owner(28, 12)
    away = np.array([f"t{at}" for at in range(4)])
    found = assign_splits(
        np.concatenate([patients, away]),
        np.concatenate([labels, labels[:4]]),
        np.array(["a"] * 40 + ["north"] * 4),
        np.array([""] * 44),
        SplitRules(hold_out="north"),
        ["no", "yes"],
    )
    assert (found.split[:12] == "train").all()
    assert abs((found.split[:40] == "val").mean() - 0.15 / 0.85) < 0.03

"""Splits counted by hand: groups, shares, gaps, folds, held-out sites and kept splits, on cohorts of a few patients."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError
from medopt.core.records import SPLITS, Case
from medopt.manifest import balance
from medopt.manifest.splits import (
    SplitAssignment,
    SplitRules,
    apply_folds,
    assign_splits,
    splits_of_folds,
)
from medopt.manifest.stratified_draw import _fill_gaps, draw_parts, group_by_patient

Cohort = tuple[NDArray[Any], NDArray[np.bool_], NDArray[Any]]


def cohort(patients: int, seed: int = 0, labels: int = 2, *, multilabel: bool = False, images: int = 1) -> Cohort:
    """Patients with a label (or several of them), three sites of which the last is rare, 1 to `images` images each."""
    random = np.random.default_rng(seed)
    size = random.integers(1, images + 1, patients)
    names = np.repeat(np.array([f"p{at:03d}" for at in range(patients)]), size)
    if multilabel:
        rows = random.random((patients, labels)) < np.linspace(0.5, 0.15, labels)
        rows[: 4 * labels] |= np.eye(labels, dtype=bool)[np.arange(4 * labels) % labels]
    else:
        rows = np.eye(labels, dtype=bool)[np.arange(patients) % labels]
    sites = np.array(["east", "north", "west"])[random.choice(3, patients, p=[0.6, 0.33, 0.07])]
    return names, np.repeat(rows, size, axis=0), np.repeat(sites, size)


def split(data: Cohort, own: list[str] | None = None, **rules: Any) -> SplitAssignment:
    patients, labels, sites = data
    source = np.array(own if own is not None else [""] * len(patients))
    return assign_splits(patients, labels, sites, source, SplitRules(**rules), "abcdef"[: labels.shape[1]])


def test_groups_by_hand() -> None:
    patients = np.array(["b", "a", "b", "c", "b"])
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=bool)
    groups = group_by_patient(patients, labels, np.array(["y", "x", "x", "z", "z"]))
    assert groups.row.tolist() == [1, 0, 1, 2, 1]
    assert groups.size.tolist() == [1, 3, 1]
    assert groups.count.tolist() == [[0, 1, 0], [1, 0, 2], [1, 1, 1]]
    assert groups.has.tolist() == [[False, True, False], [True, False, True], [True, True, True]]
    assert groups.site.tolist() == [0, 0, 2]  # b was at x, y and z: the first by name
    assert len(groups) == 3
    part = groups.where(np.array([True, False, True]))
    assert (part.size.tolist(), part.site.tolist(), part.count.tolist()) == ([1, 1], [0, 2], [[0, 1, 0], [1, 1, 1]])
    assert part.row.tolist() == []
    nobody = group_by_patient(np.empty(0, str), np.empty((0, 2), bool), np.empty(0, str))
    assert (len(nobody), nobody.count.shape) == (0, (0, 2))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("multilabel", [False, True])
def test_every_label_gets_its_shares_of_patients_in_every_draw(seed: int, multilabel: bool) -> None:
    patients, labels, sites = cohort(120, seed, 3, multilabel=multilabel)
    found = split((patients, labels, sites), seed=seed).split
    for label in range(3):
        total = int(labels[:, label].sum())
        for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
            inside = int((labels[:, label] & (found == name)).sum())
            assert inside >= 1
            # Where classes exclude each other each is dealt alone: at most one patient off. Several labels at once: 3.
            assert abs(inside - share * total) <= (3 if multilabel else 1), (label, name)


@pytest.mark.parametrize("seed", range(6))
def test_patients_without_any_label_get_the_shares_as_well(seed: int) -> None:
    """Of several labels that may all be absent, most patients often have none."""
    data = cohort(200, seed, 3, multilabel=True)
    found, nothing = split(data, seed=seed).split, ~data[1].any(axis=1)
    assert nothing.sum() > 30
    for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        assert abs(int((nothing & (found == name)).sum()) - share * nothing.sum()) <= 1


@pytest.mark.parametrize("seed", range(12))
def test_a_rare_site_gets_its_shares_too(seed: int) -> None:
    patients, labels, sites = cohort(160, seed)
    found = split((patients, labels, sites), seed=seed).split
    for site in ("east", "north", "west"):
        for label in range(2):
            there = (sites == site) & labels[:, label]
            for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
                inside = int((there & (found == name)).sum())
                assert abs(inside - share * there.sum()) < 2, (site, label, name)


@pytest.mark.parametrize("seed", range(6))
def test_patients_of_very_different_size_are_whole_and_images_have_the_shares(seed: int) -> None:
    patients, labels, sites = cohort(80, seed, 3, images=9)
    found = split((patients, labels, sites), seed=seed).split
    assert all(len(set(found[patients == name])) == 1 for name in set(patients))
    for name, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        assert abs((found == name).mean() - share) < 0.02
        assert labels[found == name].any(0).all()


@pytest.mark.parametrize(
    ("rules", "data", "digest"),
    [
        ({"seed": 3}, (90, 1, 3), "782247116362"),
        ({"seed": 3}, (90, 1, 3, True), "badd3f86a52c"),
        ({"shares": (0.5, 0.25, 0.25)}, (80, 2, 2, False, 6), "8b4f35f0ffcf"),
        ({"folds": 5, "fold": 2, "seed": 1}, (80, 3, 2, False, 3), "2ea815f6b5fc"),
        ({"hold_out": "west"}, (120, 4, 2), "fa732777338e"),
    ],
)
def test_a_seed_gives_the_splits_that_it_gave_in_earlier_versions(
    rules: dict[str, Any], data: tuple[Any, ...], digest: str
) -> None:
    """Whoever draws the splits of a published study again has them again."""
    patients, seed, labels, *more = data
    made = cohort(patients, seed, labels, multilabel=bool(more and more[0]), images=more[1] if len(more) > 1 else 1)
    found = split(made, **rules)
    text = ",".join(found.split.tolist()) + str(None if found.fold is None else found.fold.tolist())
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest


def test_a_label_needs_exactly_as_many_patients_as_parts() -> None:
    names = np.array([f"p{at}" for at in range(9)])
    for few, fits in ((3, True), (2, False)):
        labels = np.eye(2, dtype=bool)[(np.arange(9) < few).astype(int)]
        groups = group_by_patient(names, labels, np.array(["a"] * 9))
        if fits:
            parts = draw_parts(groups, (0.6, 0.2, 0.2), 0, "ab")
            assert sorted(parts[:3].tolist()) == [0, 1, 2]
        else:
            with pytest.raises(DataError, match=r"too few patients for 3 parts .*: b has 2, of 9 in all"):
                draw_parts(groups, (0.6, 0.2, 0.2), 0, "ab")
            parts = draw_parts(groups, (0.6, 0, 0.4), 0, "ab")  # a part without a share needs nobody
            assert 1 not in parts.tolist()
            assert sorted(parts[:2].tolist()) == [0, 2]
            assert Counter(parts.tolist()) == {0: 5, 2: 4}


def test_no_draw_that_could_be_is_said_with_the_patients_by_part() -> None:
    """Each two of three patients share a label, so that they would need three parts."""
    labels = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    groups = group_by_patient(np.array(list("abc")), labels, np.array(["x"] * 3))
    with pytest.raises(
        DataError, match=r"No draw puts each class into each of 2 parts.*numbered from 0: a in \["
    ) as no:
        draw_parts(groups, (0.5, 0.5), 0, "abc")
    assert str(no.value).count("[") == 3
    assert sorted(draw_parts(groups, (1.0, 0.0), 0, "abc").tolist()) == [0, 0, 0]


def filled(has: list[list[int]], chosen: list[int], used: list[int], fixed: list[int]) -> list[int] | None:
    parts = np.array(chosen)
    done = _fill_gaps(parts, np.array(has, bool), np.array(used, bool), np.array(fixed, bool))
    return parts.tolist() if done else None


def test_a_gap_is_filled_from_where_most_are_left() -> None:
    has = [[1, 0]] * 4 + [[0, 1]] * 4
    assert filled(has, [0, 0, 0, 0, 0, 0, 0, 1], [1, 1], [0] * 8) == [1, 0, 0, 0, 0, 0, 0, 1]
    assert filled(has, [0, 0, 0, 0, 0, 0, 0, 1], [1, 1], [1, 1, 0, 0, 0, 0, 0, 0]) == [0, 0, 1, 0, 0, 0, 0, 1]
    assert filled(has, [0, 0, 0, 0, 0, 0, 0, 1], [1, 1], [1, 1, 1, 1, 0, 0, 0, 0]) == [1, 0, 0, 0, 0, 0, 0, 1]
    assert filled(has, [0] * 8, [1, 0], [0] * 8) == [0] * 8  # a part without a share is no gap
    three = [[1]] * 6
    assert filled(three, [0, 0, 1, 1, 1, 1], [1, 1, 1], [0] * 6) == [0, 0, 2, 1, 1, 1]  # from the part that has more
    assert filled([[1, 1], [1, 1]], [0, 0], [1, 1], [0, 0]) == [1, 0]
    # of those that may go the one whose rarest label is left most often: not the first, which has one of two b
    several = [[1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 1]]
    assert filled(several, [0, 0, 0, 0, 0, 1], [1, 1], [0] * 6) == [0, 1, 0, 0, 0, 1]
    assert filled([[1], [1]], [0, 0], [1, 1, 1], [0, 0]) is None  # two cannot be in three parts
    assert filled([[1, 1], [1, 0]], [0, 0], [1, 1], [0, 0]) is None  # its only b would leave the first part
    assert filled([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 1, 1], [1, 1], [0] * 4) == [1, 0, 0, 1]


def test_rules_at_their_limits() -> None:
    for shares in ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.7, 0.15, 0.15 + 9e-7)):
        assert SplitRules(shares).shares == shares
    for shares in ((0.7, 0.15, 0.15 + 1.1e-6), (0.7, 0.15, 0.15 - 1.1e-6), (1.1, 0.0, -0.1)):
        with pytest.raises(ConfigError, match="sum to 1"):
            SplitRules(shares)
    assert SplitRules(folds=3, fold=2).fold == 2
    assert SplitRules(folds=3, fold=0).fold == 0
    for wrong in ({"folds": 3, "fold": 3}, {"folds": 3, "fold": -1}, {"folds": 2}, {"folds": 1}):
        with pytest.raises(ConfigError, match="--folds takes 3 or more"):
            SplitRules(**wrong)
    default = SplitRules()
    assert (default.shares, default.seed, default.folds, default.fold) == ((0.7, 0.15, 0.15), 0, 0, 0)
    assert not default.resplit


def test_of_folds_one_tests_and_the_next_validates_around_the_end() -> None:
    data = cohort(60)
    for fold in range(3):
        found = split(data, folds=3, fold=fold, seed=7)
        assert found.fold is not None
        expected = [{fold: "test", (fold + 1) % 3: "val"}.get(at, "train") for at in found.fold.tolist()]
        assert found.split.tolist() == expected
        assert found.how == (
            "3 folds by patient, stratified by label and site, seed 7; "
            f"fold {fold} tests, fold {(fold + 1) % 3} validates"
        )
        assert Counter(found.fold.tolist()) == {0: 20, 1: 20, 2: 20}
        assert found.notes == ()


def test_how_splits_were_made_is_said() -> None:
    found = split(cohort(40), seed=9)
    assert found.how == "0.7/0.15/0.15 (train, val, test) by patient, stratified by label and site, seed 9"
    assert (found.fold, found.notes) == (None, ())


def own_cohort() -> tuple[Cohort, list[str]]:
    """60 patients of two images: 40 in train, 20 in the test of the source."""
    names = np.repeat(np.array([f"p{at:02d}" for at in range(60)]), 2)
    labels = np.eye(2, dtype=bool)[np.repeat(np.arange(60) % 2, 2)]
    return (names, labels, np.array(["a"] * 120)), ["train"] * 80 + ["test"] * 40


def test_what_the_sources_own_splits_lack_is_drawn_from_train() -> None:
    data, own = own_cohort()
    kept = split(data, ["train"] * 60 + ["val"] * 20 + ["test"] * 40)
    assert kept.split.tolist() == ["train"] * 60 + ["val"] * 20 + ["test"] * 40
    assert (kept.how, kept.fold, kept.notes) == ("the source's own splits are kept", None, ())
    found = split(data, own, shares=(0.6, 0.2, 0.2), seed=4)
    assert found.split[80:].tolist() == ["test"] * 40
    assert Counter(found.split.tolist()) == {"train": 60, "val": 20, "test": 40}
    assert found.how == (
        "the source's own splits are kept; val drawn from train by patient, stratified by label and site, seed 4"
    )
    own = ["train"] * 80 + ["val"] * 40
    found = split(data, own, shares=(0.75, 0.0, 0.25))
    assert Counter(found.split.tolist()) == {"train": 60, "val": 40, "test": 20}
    assert found.how == (
        "the source's own splits are kept; test drawn from train by patient, stratified by label and site, seed 0"
    )
    assert found.notes == ()
    own = ["train"] * 80 + ["other"] * 40  # a word that is no split: those rows stay out, the rest has one split only
    found = split(data, own, shares=(0.5, 0.25, 0.25)).split
    assert [int((found == name).sum()) for name in SPLITS] == [60, pytest.approx(30, abs=2), pytest.approx(30, abs=2)]


def test_the_sources_own_splits_and_what_contradicts_them() -> None:
    data, own = own_cohort()
    for rules in ({"folds": 3}, {"hold_out": "a"}):
        with pytest.raises(ConfigError, match="need --resplit"):
            split(data, own, **rules)
    anew = split(data, own, resplit=True).split
    assert [int((anew == name).sum()) for name in SPLITS] == [84, pytest.approx(18, abs=2), pytest.approx(18, abs=2)]
    own[1] = own[3] = "test"
    with pytest.raises(DataError, match="2 of 60 patients are in more than one of the source's own splits"):
        split(data, own)
    assert len(set(split(data, ["train"] * 120).split.tolist())) == 3  # one split alone is none


def test_a_site_is_held_out_with_all_rows_of_its_patients() -> None:
    names = np.array([f"p{at:02d}" for at in range(40)] + ["p00", "p01"])
    sites = np.array(["north"] * 8 + ["south"] * 32 + ["south"] * 2)
    labels = np.eye(2, dtype=bool)[np.r_[np.arange(40) % 2, 0, 1]]
    found = split((names, labels, sites), hold_out="north", shares=(0.75, 0.25, 0.0), seed=2)
    assert found.split[:8].tolist() == ["test"] * 8
    assert found.split[40:].tolist() == ["test"] * 2
    assert Counter(found.split[8:40].tolist()) == {"train": 24, "val": 8}
    assert found.notes == ("2 rows of other sites in the test, too: the patients were at north.",)
    assert found.how == (
        "site north held out as the test; the rest 0.75/0.25 (train, val) by patient, stratified by label and site, "
        "seed 2"
    )
    alone = split((names[:40], labels[:40], sites[:40]), hold_out="north", shares=(0.75, 0.25, 0.0))
    assert alone.notes == ()
    labels[[1, 3, 5, 7, 41]] = [True, False]
    with pytest.raises(DataError, match="The site north has no case of b in 8 patients"):
        split((names, labels, sites), hold_out="north")


def test_the_sources_own_folds_by_hand() -> None:
    patients = np.array(list("abcdefg"))
    own, folds = np.array(["train"] * 7), np.array([0, 0, 1, 1, 4, 4, -1])
    expected = {
        0: ["test", "test", "val", "val", "train", "train", "train"],
        1: ["train", "train", "test", "test", "val", "val", "train"],
        4: ["val", "val", "train", "train", "test", "test", "train"],  # the next after the last is the first
    }
    for fold, splits in expected.items():
        found = splits_of_folds(patients, own, folds, fold)
        assert found.split.tolist() == splits
        assert found.fold is not None and found.fold.tolist() == folds.tolist()
    assert splits_of_folds(patients, own, folds, 4).how == "the source's own folds: fold 0 validates, fold 4 tests"
    with_test = np.array(["train"] * 6 + ["test"])
    found = splits_of_folds(patients, with_test, folds, 1)
    assert found.split.tolist() == ["train", "train", "val", "val", "train", "train", "test"]
    assert found.how == "the source's own folds: fold 1 validates"
    without = splits_of_folds(patients, with_test, np.array([0, 0, 1, 1, -1, -1, -1]), 1)  # in no fold: they train
    assert without.split.tolist() == ["train", "train", "val", "val", "train", "train", "test"]
    for wrong in (2, 3, -1):
        with pytest.raises(ConfigError, match=rf"--fold {wrong}: the source has the folds 0, 1, 4"):
            splits_of_folds(patients, own, folds, wrong)
    two = np.array([0, 0, 0, 1, 1, 1, -1])
    assert splits_of_folds(patients, with_test, two, 0).split.tolist() == ["val"] * 3 + ["train"] * 3 + ["test"]
    with pytest.raises(ConfigError, match="has the folds 0, 1"):
        splits_of_folds(patients, own, two, 0)  # without a test, two folds leave none to train on
    with pytest.raises(ConfigError):
        splits_of_folds(patients, with_test, np.array([0] * 6 + [-1]), 0)
    with pytest.raises(DataError, match="several of the source's own folds"):
        splits_of_folds(np.array(list("abacdef")), own, folds, 0)


@pytest.mark.parametrize(
    ("labels", "truth"),
    [(["a", "b"], lambda at: (at % 2,)), (["a", "b", "c"], lambda at: (at % 3,))],
)
def test_folds_of_a_study_leave_the_test_and_stratify_each_class(labels: list[str], truth: Any) -> None:
    check_folds(labels, "binary" if len(labels) == 2 else "multiclass", truth)


def test_folds_of_a_study_of_several_labels_stratify_each_of_them() -> None:
    check_folds(["a", "b", "c"], "multilabel", lambda at: (int(at % 2 == 0), int(at % 3 == 0), int(at % 5 == 0)))


def test_where_labels_are_unknown_their_absence_is_stratified_too() -> None:
    """Of b three patients are known to be without it: one in each fold; two are refused by name."""
    data = {"manifest": "m.csv", "labels": ["a", "b"], "task": "multilabel", "folds": 3}
    for without, seeds in ((3, range(4)), (2, range(1))):
        for turn in seeds:
            known = {(7 * turn + 5 * at) % 60: 0 for at in range(without)}
            cases = [
                Case(f"c{at}", f"p{at:02d}", "x.png", (at % 2, known.get(at, None if at % 3 else 1)), "train")
                for at in range(60)
            ]
            studies = [
                Study.model_validate(
                    {"name": "s", "question": "?", "data": data | {"fold": fold}, "prepare": {"size": [16, 16]}}
                )
                for fold in range(3)
            ]
            if without < 3:
                with pytest.raises(DataError, match=r"too few patients for 3 parts .*: b = 0 has 2, of 60"):
                    apply_folds(cases, studies[0])
                continue
            validation = [[case for case in apply_folds(cases, one) if case.split == "val"] for one in studies]
            assert [sum(case.label[1] == 0 for case in fold) for fold in validation] == [1, 1, 1]


def check_folds(labels: list[str], task: str, truth: Any) -> None:
    data = {"manifest": "m.csv", "labels": labels, "task": task, "folds": 3}
    cases = [
        Case(f"c{at}", f"p{at:02d}", f"{at}.png", truth(at), "test" if at < 6 else "train", site="ab"[at % 2])
        for at in range(96)
    ]
    folds = []
    for fold in range(3):
        study = Study.model_validate(
            {"name": "s", "question": "?", "data": data | {"fold": fold}, "prepare": {"size": [16, 16]}}
        )
        found = apply_folds(cases, study)
        assert [case.case_id for case in found] == [case.case_id for case in cases]
        assert [case.split for case in found[:6]] == ["test"] * 6
        val = [case for case in found if case.split == "val"]
        assert len(val) == 30
        for column in range(len(truth(0))):
            for value in {case.label[column] for case in cases}:
                total = sum(case.label[column] == value for case in cases[6:])
                inside = sum(case.label[column] == value for case in val)
                assert abs(inside - total / 3) <= (3 if task == "multilabel" else 1), (column, value)
        folds.append({case.case_id for case in val})
    assert len(set.union(*folds)) == 90  # each once


def test_folds_that_cannot_be_even_say_what_they_hold() -> None:
    """One patient has 30 of 60 images: two folds of three share the rest."""
    names = np.array(["big"] * 30 + [f"p{at:02d}" for at in range(30)])
    labels = np.eye(2, dtype=bool)[np.arange(60) % 2]
    found = split((names, labels, np.array(["a"] * 60)), folds=3, fold=1)
    assert found.fold is not None
    big = int(found.fold[0])
    assert Counter(found.fold.tolist()) == {big: 30} | dict.fromkeys({0, 1, 2} - {big}, 15)
    held = "/".join("0.5" if at == big else "0.25" for at in range(3))
    assert found.how.endswith(f"; fold 1 tests, fold 2 validates; of the images {held}")
    assert found.notes == (
        f"The splits hold {held} of the images (0, 1, 2), not 0.333/0.333/0.333: patients have very different numbers "
        "of images.",
    )


def test_what_is_drawn_from_train_says_what_it_holds_of_train_alone() -> None:
    names = np.array(["big"] * 40 + [f"p{at:02d}" for at in range(10)] + ["t0", "t1"] * 5)
    labels = np.eye(2, dtype=bool)[np.arange(60) % 2]
    found = split((names, labels, np.array(["a"] * 60)), ["train"] * 50 + ["test"] * 10, shares=(0.5, 0.3, 0.2))
    assert Counter(found.split.tolist()) == {"train": 40, "val": 10, "test": 10}
    assert found.how.endswith("seed 0; of the images 0.8/0.2")
    assert found.notes[0].startswith("The splits hold 0.8/0.2 of the images (train, val), not 0.5/0.3: ")


def test_what_a_held_out_site_leaves_says_what_it_holds_of_the_rest_alone() -> None:
    names = np.array(["big"] * 40 + [f"p{at:02d}" for at in range(10)] + [f"n{at}" for at in range(10)])
    labels = np.eye(2, dtype=bool)[np.arange(60) % 2]
    sites = np.array(["south"] * 50 + ["north"] * 10)
    found = split((names, labels, sites), hold_out="north", shares=(0.5, 0.3, 0.2))
    assert Counter(found.split.tolist()) == {"train": 40, "val": 10, "test": 10}
    assert found.how.endswith("seed 0; of the images 0.8/0.2")
    (note,) = found.notes
    assert note.startswith("The splits hold 0.8/0.2 of the images (train, val), not 0.5/0.3: ")


def test_a_row_in_none_of_the_sources_own_splits_is_refused() -> None:
    """It would have to be guessed into one of them."""
    data, own = own_cohort()
    for word, shown in (("", "none of them \\(.*\\)"), ("holdout", "none of them \\(holdout\\)")):
        own[0] = own[1] = word
        with pytest.raises(DataError, match=f"^2 rows of a source with its own splits are in {shown}.*--resplit"):
            split(data, own)
        assert len(set(split(data, own, resplit=True).split.tolist())) == 3


def test_the_folds_of_a_manifest_are_those_of_earlier_versions() -> None:
    """Whatever the seed of a study: members of several seeds, and of several years, are compared on the same folds."""
    cases = [Case(f"c{at}", f"p{at:02d}", "x.png", (at % 2,), "train", site="ab"[at % 3 == 0]) for at in range(40)]
    data = {"manifest": "m.csv", "labels": ["a", "b"], "folds": 4, "fold": 1}
    study = Study.model_validate({"name": "s", "question": "?", "data": data, "prepare": {"size": [16, 16]}, "seed": 9})
    found = [case.case_id for case in apply_folds(cases, study) if case.split == "val"]
    assert found == ["c5", "c11", "c16", "c23", "c25", "c28", "c30", "c32", "c36", "c39"]


def test_balance_and_quotas_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    half, size = np.array([0.5, 0.5]), np.array([2, 1, 1])
    assert (balance.TOLERANCE, balance.WARNED) == (0.02, 0.03)
    monkeypatch.setattr(balance, "TOLERANCE", 0.25)
    assert balance.is_balanced(np.array([0, 0, 1]), size, half)  # off by exactly the tolerance
    assert not balance.is_balanced(np.array([0, 0, 0]), size, half)
    assert balance.is_balanced(np.array([0, 0, 0]), np.array([1, 1, 1]), half)
    assert balance.quota(10, np.array([0.7, 0.15, 0.15])).tolist() in ([7, 2, 1], [7, 1, 2])
    assert balance.quota(3, np.array([0.9, 0.05, 0.05])).tolist() == [1, 1, 1]
    assert balance.quota(2, np.array([0.9, 0.05, 0.05])).tolist() == [2, 0, 0]
    assert balance.quota(7, np.array([0.8, 0.0, 0.2])).tolist() == [6, 0, 1]
    assert balance.proportional(6, np.array([4.0, 2.0, 0.0]), np.array([0.5, 0.3, 0.2])).tolist() == [4, 2, 0]
    assert balance.proportional(3, np.array([4.0, 2.0, 0.0]), np.array([0.5, 0.3, 0.2])).tolist() == [2, 1, 0]
    assert balance.proportional(5, np.array([1.0, 1.0, 2.0]), np.full(3, 1 / 3)).tolist() == [
        1,
        1,
        3,
    ]  # 1.25, 1.25, 2.5
    assert balance.proportional(3, np.array([1.0, 1.0, 0.0]), np.full(3, 1 / 3)).tolist() == [2, 1, 0]
    assert balance.proportional(10, np.zeros(3), np.array([0.5, 0.3, 0.2])).tolist() == [5, 3, 2]


def parts_cost(count: NDArray[Any], size: NDArray[Any], chosen: NDArray[Any], part: NDArray[Any]) -> float:
    """Squared deviations from the shares: all labels together count as much as the images, each by its total."""
    rows, weights = [*count.T, size], [*[1 / count.shape[1]] * count.shape[1], 1.0]
    return sum(
        weight / column.sum() * (column[chosen == at].sum() - share * column.sum()) ** 2
        for column, weight in zip(rows, weights, strict=True)
        for at, share in enumerate(part)
    )


@pytest.mark.parametrize("seed", range(8))
def test_after_all_moves_no_single_move_is_an_improvement(seed: int) -> None:
    """By the cost written out; one patient is far larger than others, so that only the last of a label must stay."""
    random, part = np.random.default_rng(seed), np.array([0.6, 0.0, 0.25, 0.15])
    size = random.integers(1, 6, 30)
    size[0] = 40
    rare = np.minimum((random.random(30) < 0.25) * random.integers(1, 6, 30), size)
    count, chosen = np.stack([size - rare, rare], axis=1), random.choice([0, 2, 3], 30)
    before, fixed = parts_cost(count, size, chosen, part), np.arange(30) == 5
    start = chosen.copy()
    labels = [[set(np.unique(chosen[count[:, label] > 0])) for label in range(2)]]
    balance.move_groups(chosen, count, size, part, fixed)
    after = parts_cost(count, size, chosen, part)
    assert after < before and chosen[5] == start[5] and not (chosen == 1).any()
    labels.append([set(np.unique(chosen[count[:, label] > 0])) for label in range(2)])
    assert all(set(had) <= set(has) for had, has in zip(*labels, strict=True))
    for group in np.flatnonzero(~fixed):
        here = (chosen == chosen[group])[:, None] & (count > 0)
        if (here.sum(0)[count[group] > 0] <= 1).any():
            continue  # the last of a label
        for target in (0, 2, 3):
            moved = chosen.copy()
            moved[group] = target
            assert parts_cost(count, size, moved, part) > after - 1e-6, (group, target)


def test_moves_leave_the_patients_of_a_label_as_they_were_dealt_to_within_two() -> None:
    """The second of three parts has the large patients: by its images it would lose two, and the others gain one."""
    size, part = np.repeat([2, 4, 2], 10), np.full(3, 1 / 3)
    chosen = np.repeat([0, 1, 2], 10)
    balance.move_groups(chosen, size[:, None], size, part, np.zeros(30, bool))
    assert sorted(np.bincount(chosen).tolist()) == [9, 10, 11] and np.bincount(chosen)[1] == 9
    heavy = np.repeat([2, 9, 2], 10)  # far larger than most: their images decide
    chosen = np.repeat([0, 1, 2], 10)
    balance.move_groups(chosen, heavy[:, None], heavy, part, np.zeros(30, bool))
    assert np.bincount(chosen)[1] < 9


def test_no_patient_is_moved_into_a_part_without_a_share() -> None:
    """Not where each other part is either full or has its patients: the first is too large, by 8 images of 40."""
    size, chosen = np.repeat([4, 1, 5], [10, 11, 9]), np.repeat([0, 1, 2], [10, 11, 9])
    before = chosen.copy()
    balance.move_groups(chosen, size[:, None], size, np.array([1 / 3, 1 / 3, 1 / 3, 0]), np.zeros(30, bool))
    assert chosen.tolist() == before.tolist()


def test_an_oversized_patient_fills_a_small_part_and_has_more_than_twice_the_median() -> None:
    part = np.array([0.8, 0.1, 0.1])
    assert balance.oversized(np.array([1, 1, 1, 1, 2]), part).tolist() == [False] * 5  # twice the median
    assert balance.oversized(np.array([1, 1, 1, 1, 3]), part).tolist() == [False] * 4 + [True]
    assert not balance.oversized(np.array([1] * 27 + [3]), part).any()  # exactly a tenth of the 30
    assert balance.oversized(np.array([1] * 26 + [3]), part).sum() == 1
    for largest, found in ((0.375, 1), (0.37, 0)):  # parts are equal where the largest is less than 1.5 times the least
        assert balance.oversized(np.array([1] * 4 + [9]), np.array([largest, 0.25, 0.0])).sum() == found


def test_shares_that_are_off_by_exactly_what_is_warned_of_are_only_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of 16 are allowed besides, as with few of them no share can be kept."""
    monkeypatch.setattr(balance, "WARNED", 0.25)
    size = np.array([1, 2])
    for inside, warned in ((14, False), (15, True)):
        parts = np.array(["a"] * inside + ["b"] * (16 - inside))
        said, notes = balance.real_shares(parts, ["a", "b"], [0.5, 0.5], size)
        assert said.startswith("; of the images 0.") and bool(notes) == warned
    assert balance.real_shares(parts, ["a", "b"], [0.5, 0.5], np.array([1, 1]))[1] == ()

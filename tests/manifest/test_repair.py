"""A manifest mended: groups in one split, contradictions and damage left out, all else as it was."""

from __future__ import annotations

import csv

import pytest
from pictures import write_manifest, write_set

from medopt.core.errors import DataError
from medopt.core.records import Case
from medopt.manifest.duplicates import DuplicatePair
from medopt.manifest.repair import connected_groups, plan_repair, write_repaired


def cases_of(*rows: tuple[str, int, str]) -> list[Case]:
    return [Case(str(k), patient, f"{k}.png", (label,), split) for k, (patient, label, split) in enumerate(rows)]  # type: ignore[arg-type]


def test_a_group_goes_where_most_of_it_is_by_way_of_patients_and_copies():
    cases = cases_of(("a", 0, "train"), ("b", 0, "test"), ("b", 0, "test"), ("c", 0, "val"), ("d", 0, "val"))
    repair = plan_repair(cases, [DuplicatePair(0, 1, 0.995), DuplicatePair(2, 3, 0.992)], {})
    assert repair.moved == {0: "test", 3: "test"}
    assert [case.split for case in repair.apply(cases)] == ["test", "test", "test", "test", "val"]


def test_of_equal_splits_train_is_first_then_val():
    cases = cases_of(("a", 0, "test"), ("b", 0, "train"), ("c", 0, "test"), ("d", 0, "val"))
    assert plan_repair(cases, [DuplicatePair(0, 1, 0.995), DuplicatePair(2, 3, 0.995)], {}).moved == {
        0: "train",
        2: "val",
    }


def test_the_same_pixels_under_two_labels_and_the_unusable_are_dropped_and_link_nothing():
    cases = cases_of(("a", 0, "train"), ("b", 1, "test"), ("c", 0, "val"), ("d", 0, "test"), ("e", 0, "train"))
    pairs = [DuplicatePair(0, 1, 1.0, exact=True), DuplicatePair(1, 2, 0.995), DuplicatePair(3, 4, 0.999)]
    repair = plan_repair(cases, pairs, {4: "is constant"})
    assert repair.dropped == {
        0: "the same pixels under two labels",
        1: "the same pixels under two labels",
        4: "is constant",
    }
    assert repair.moved == {}


def test_near_copies_under_two_labels_stay_together():
    cases = cases_of(("a", 0, "train"), ("b", 1, "test"))
    repair = plan_repair(cases, [DuplicatePair(0, 1, 0.999)], {})
    assert (repair.moved, repair.dropped) == ({1: "train"}, {})


def test_writing_changes_the_split_and_the_rows_and_nothing_else(tmp_path):
    cases = write_set(tmp_path / "images")
    manifest = write_manifest(tmp_path / "m.csv", cases)
    repair = plan_repair(cases, [DuplicatePair(0, 20, 0.999)], {3: "is constant"})
    write_repaired(manifest, tmp_path / "out" / "mended.csv", repair)
    with manifest.open(newline="") as before, (tmp_path / "out" / "mended.csv").open(newline="") as after:
        given, written = list(csv.reader(before)), list(csv.reader(after))
    expected = [row for number, row in enumerate(given) if number != 4]
    expected[20] = [*given[21][:3], "train", given[21][4]]
    assert written == expected


def test_the_manifest_itself_is_not_overwritten(tmp_path):
    cases = write_set(tmp_path / "images")
    manifest = write_manifest(tmp_path / "m.csv", cases)
    before = manifest.read_bytes()
    with pytest.raises(DataError, match="is the manifest itself"):
        write_repaired(manifest, tmp_path / "images" / ".." / "m.csv", plan_repair(cases, [], {}))
    assert manifest.read_bytes() == before


def test_connected_groups():
    assert connected_groups(6, [(4, 1), (1, 0), (5, 3)]) == [[0, 1, 4], [2], [3, 5]]

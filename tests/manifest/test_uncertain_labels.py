"""Labels that are uncertain (-1) or missing (an empty cell), as in CheXpert's tables."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from medopt.core.records import Case, label_table
from medopt.manifest.build import BuildOptions, build_manifest
from medopt.manifest.check import check_cases, small_split_findings
from medopt.manifest.duplicates import DuplicatePair, label_conflicts
from medopt.manifest.infer_study import infer_study
from medopt.manifest.quality import count_labels
from medopt.manifest.run_manifest import manifest_digest, write_run_manifest
from medopt.manifest.splits import apply_folds
from medopt.manifest.table import read_manifest
from medopt.manifest.unlabelled import read_images
from medopt.planning.fingerprint import take_fingerprint

HEADER = "image,patient_id,mass,fluid,split"
ROWS = ("1.png,A,1.0,-1.0,train", "2.png,B,0,,train", "3.png,C,uncertain,0,val", "4.png,D,n/a,nan,test")


@pytest.fixture
def several(study):
    return lambda **data: study(task="multilabel", labels=["mass", "fluid"], **data)


@pytest.mark.parametrize(("policy", "value"), [("ignore", None), ("negative", 0), ("positive", 1)])
def test_uncertain_counts_as_the_study_says_and_missing_is_never_known(manifest, several, policy, value):
    cases = read_manifest(manifest(*ROWS, header=HEADER), several(uncertain=policy))
    assert [case.label for case in cases] == [(1, value), (0, None), (value, 0), (None, None)]
    assert [case.uncertain for case in cases] == [(1,), (), (0,), ()]


def test_what_is_not_known_becomes_nan(manifest, several):
    table = label_table(read_manifest(manifest(*ROWS, header=HEADER), several()))
    assert np.isnan(table).sum() == 5 and np.nansum(table) == 1


def test_ignoring_is_the_default_and_the_policy_is_for_several_labels(study, several):
    assert several().data.uncertain == "ignore"
    with pytest.raises(ValidationError, match="uncertain: positive is for labels of a multilabel study"):
        study(uncertain="positive")


@pytest.mark.parametrize("policy", ["ignore", "negative", "positive"])
def test_the_runs_manifest_keeps_what_was_uncertain_and_what_was_missing(manifest, several, tmp_path, policy):
    study = several(uncertain=policy)
    cases = read_manifest(manifest(*ROWS, header=HEADER), study)
    write_run_manifest(tmp_path / "run.csv", cases, study)
    with (tmp_path / "run.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["fluid"] for row in rows] == ["-1", "", "0", ""]
    assert read_manifest(tmp_path / "run.csv", study, from_run=True) == cases
    assert manifest_digest(cases) == manifest_digest(reversed(cases))


def test_check_counts_them_and_asks_for_known_ones_of_each_kind(manifest, several, tmp_path):
    study = several()
    cases = read_manifest(manifest(*ROWS, header=HEADER), study)
    findings = {finding.name: finding for finding in check_cases(cases, tmp_path, study)}
    note = findings["unknown_labels"]
    assert note.severity == "note"
    assert "of 4 cases: mass 1 uncertain and 1 missing; fluid 1 uncertain and 2 missing" in note.text
    assert "1 case without any known label" in note.text and "data.uncertain: ignore" in note.text
    assert "split test (1 cases) has no case of mass = 0; mass = 1" in findings["class_absent"].text
    row = count_labels(cases, study)[0]
    assert row == {"split": "train", "site": "all", "images": 2, "mass": 1, "fluid": 0} | {
        "mass not known": 0,
        "fluid not known": 2,
    }
    assert "mass = 1 0" not in small_split_findings(cases, study)[0].text
    positive = several(uncertain="positive")
    told = check_cases(read_manifest(manifest(*ROWS, header=HEADER), positive), tmp_path, positive)
    assert "uncertain labels count as positive" in next(one.text for one in told if one.name == "unknown_labels")


def test_a_label_that_is_not_known_contradicts_none():
    cases = [Case(str(k), str(k), "", label, "train") for k, label in enumerate([(1, None), (1, 0), (0, 0)])]
    pairs = [DuplicatePair(first, second, 1.0, False, True) for first, second in ((0, 1), (0, 2))]
    assert label_conflicts(cases, pairs[:1]) == set()
    assert label_conflicts(cases, pairs) == {0, 2}


def test_a_study_is_inferred_and_images_are_read(manifest):
    path = manifest("1.png,A,1,,train,3", "2.png,B,0,-1,train,-1", "3.png,C,,1.0,val,0", header=HEADER + ",count")
    study = infer_study(path)
    assert (study.data.task, study.data.labels) == ("multilabel", ["mass", "fluid"])
    images = read_images(path)
    assert images.labels == ("mass", "fluid")
    assert [case.label for case in images.cases] == [(1, None), (0, None), (None, 1)]


def test_plan_and_folds_count_known_labels(several, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png")
    labels = [(1, None), (0, 1), (None, 0), (1, 1)] * 6
    cases = [Case(f"c{k}", f"p{k}", "x.png", label, "train") for k, label in enumerate(labels)]
    found = take_fingerprint(cases, ["mass", "fluid"], "multilabel", tmp_path)
    assert found.counts["train"] == {"": 24, "mass": 12, "fluid": 12}
    assert found.rarest_share == pytest.approx(2 / 3)  # of the 18 cases of which each label is known
    for fold in range(3):
        folded = apply_folds(cases, several(folds=3, fold=fold))
        validating = label_table([case for case in folded if case.split == "val"])
        assert all({0, 1} <= set(column.tolist()) for column in validating.T)


def test_build_takes_them_from_a_table(tmp_path, several):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["file,patient_id,mass,fluid"]
    for at in range(24):
        Image.fromarray(np.random.default_rng(at).integers(0, 255, (16, 16)).astype(np.uint8)).save(
            folder / f"{at}.png"
        )
        rows.append(f"{at}.png,P{at},{('1.0', '0.0', '-1.0', '')[at % 4]},{('0', '1')[at // 4 % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "24.png,P24,,"]) + "\n")
    options = BuildOptions(
        labels=tmp_path / "labels.csv", label_columns=("mass", "fluid"), datalist=tmp_path / "list.json"
    )
    built = build_manifest(folder, tmp_path / "m.csv", options)
    cases = read_manifest(built.manifest, several())
    assert {case.label[0] for case in cases} == {0, 1, None}
    assert sum(bool(case.uncertain) for case in cases) == 6
    for split in ("train", "val", "test"):
        assert {0, 1} <= {case.label[0] for case in cases if case.split == split}
    assert "1 in 6 rows, uncertain in 6, missing in 6, else 0" in built.card.read_text()
    assert not [warning for warning in built.warnings if "no case of" in warning]
    items = json.loads((tmp_path / "list.json").read_text())
    assert {item["label"][0] for part in ("training", "test") for item in items[part]} == {0, 1, -1, None}
    again = build_manifest(tmp_path / "list.json", tmp_path / "again.csv", BuildOptions())
    assert sorted(row["label_0"] for row in again.rows) == sorted(row["mass"] for row in built.rows)

"""`medopt manifest build` as a user gives it, on real sets where they are there."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from clinic_fixtures import call
from real_data import real
from scans_of_patients import mr_series, png

from medopt.config import Study
from medopt.imaging.scan import read_scan
from medopt.imaging.series_index import index_folder
from medopt.manifest.check import check_cases
from medopt.manifest.table import read_manifest


def built(source: Path, out: Path, *words: object) -> dict[str, Any]:
    """The JSON object of the last line; the manifest is one that its study's check accepts."""
    done = call("manifest", "build", source, "--out", out, "--json", *words)
    assert done.code == 0, done.stderr
    assert f"medopt manifest check {out}" in done.stdout
    summary = done.summary
    study = of_labels(list(summary["labels"]))
    cases = read_manifest(out, study)
    assert len(cases) == summary["rows"]
    faults = {item.name for item in check_cases(cases, Path(summary["root"]), study)}
    assert faults <= ({"split_absent"} if 0 in summary["splits"].values() else set())
    return summary


def of_labels(labels: list[str]) -> Study:
    data = {"manifest": "m.csv", "labels": labels, "task": "binary" if len(labels) == 2 else "multiclass"}
    return Study.model_validate({"name": "s", "question": "?", "data": data, "prepare": {"size": [32, 32]}})


def table(path: Path, rows: list[list[str]], separator: str = ",") -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=separator).writerows(rows)
    return path


def test_busi(tmp_path: Path) -> None:
    summary = built(real("busi"), tmp_path / "m.csv")
    assert {name: sum(row.values()) for name, row in summary["labels"].items()} == {
        "benign": 437, "malignant": 210, "normal": 133,
    }  # fmt: skip
    assert any("No patient IDs found" in text for text in summary["warnings"])


def test_mednist(tmp_path: Path) -> None:
    summary = built(real("mednist_small"), tmp_path / "m.csv", "--folds", 5, "--fold", 1)
    assert summary["splits"] == {"train": 360, "val": 120, "test": 120}


def test_breastmnist(tmp_path: Path) -> None:
    summary = built(real("breastmnist/breastmnist.npz"), tmp_path / "m.csv")
    assert summary["splits"] == {"train": 546, "val": 78, "test": 156}
    assert summary["labels"]["0"] == {"train": 147, "val": 21, "test": 42}
    assert read_scan("breastmnist.npz#test_images/155", data=Path(summary["root"])).array.shape == (1, 28, 28)


def test_hippocampus_with_persons_in_the_table(tmp_path: Path) -> None:
    source = real("hippocampus")
    names = sorted(path.name for path in (source / "images").iterdir())
    rows = [[name, f"person{int(name[12:15]) // 2}", "even" if int(name[12:15]) // 2 % 2 else "odd"] for name in names]
    labels = table(tmp_path / "l.csv", [["image", "patient_id", "label"], *rows], "\t")
    summary = built(source, tmp_path / "m.csv", "--labels", labels)
    assert (summary["rows"], summary["left_out"]) == (200, {"a mask, a label volume or a derivative, by its name": 200})
    assert summary["patients"] == len({row[1] for row in rows})


@pytest.mark.parametrize("form", ["tree", "flat", "zip"])
def test_a_real_mr_study_as_tree_flat_and_zip(tmp_path: Path, form: str) -> None:
    source = real("dicom/mr_study")
    series = index_folder(source).series
    rows = [[one.uid, "t1" if "T1" in one.description else "other"] for one in series]
    labels = table(tmp_path / "l.csv", [["SeriesInstanceUID", "label"], *rows], ";")
    place = source
    if form == "flat":
        place = tmp_path / "export"
        place.mkdir()
        for at, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
            shutil.copy(path, place / f"I{at:04d}")
    elif form == "zip":
        place = tmp_path / "export.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, path.relative_to(source))
    summary = built(place, tmp_path / "m.csv", "--labels", labels, "--split", "0,0,1")
    assert summary["labels"] == {name: {"train": 0, "val": 0, "test": 2} for name in ("other", "t1")}
    assert summary["left_out"] == {"derived from other images (--keep-derived keeps it)": 1}
    assert Path(summary["root"]) == (tmp_path / "m_files" if form == "zip" else place)
    text = (tmp_path / "m.csv").read_text() + (tmp_path / "m.card.yaml").read_text()
    assert series[0].patient not in text
    with (tmp_path / "m.csv").open(newline="") as stream:
        image = next(csv.DictReader(stream))["image"]
    assert read_scan(image, data=Path(summary["root"])).array.shape[:2] == (1, 22)
    refused = call("manifest", "build", place, "--labels", labels, "--out", tmp_path / "n.csv")
    if form == "zip":
        shutil.rmtree(tmp_path / "n_files")
    refused.refused(3, "other has 1; t1 has 1, of 1 in all")


def test_rules_of_a_study_file_choose_the_series(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for description in ("FLAIR", "T1", "T2"):
            place = tmp_path / "scans" / patient / description
            mr_series(place, patient, f"1.2.{patient[1]}", description, name=description)
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "name: flair\nquestion: Which?\nprepare: {size: [16, 64, 64]}\n"
        "data: {manifest: m.csv, labels: [a, b], series: {description: [FLAIR, T2]}}\n"
    )
    labels = table(tmp_path / "labels.csv", [["patient_id", "label"], ["p1", "a"], ["p2", "b"]])
    words = ("--labels", labels, "--split", "0,0,1")
    refused = call("manifest", "build", tmp_path / "scans", "--out", tmp_path / "m.csv", *words)
    refused.refused(3, "which series is meant", "--series-rules")
    assert not (tmp_path / "m.csv").exists()
    summary = built(tmp_path / "scans", tmp_path / "m.csv", *words, "--series-rules", rules)
    assert summary["rows"] == 2
    assert all("FLAIR" in row["image"] for row in csv.DictReader((tmp_path / "m.csv").open()))


def test_a_phantom_with_labels_by_file(tmp_path: Path) -> None:
    assert call("phantom", tmp_path / "p", "--patients", 24).code == 0
    with (tmp_path / "p" / "manifest.csv").open(newline="") as stream:
        rows = [[row["image"], row["label"]] for row in csv.DictReader(stream)]
    labels = table(tmp_path / "l.csv", [["file", "label"], *rows])
    summary = built(tmp_path / "p", tmp_path / "m.csv", "--labels", labels, "--seed", 3)
    assert (summary["rows"], summary["patients"], len(summary["sites"])) == (len(rows), 24, 3)
    assert summary["labelled_by"] == "l.csv, joined by file (column file)"
    assert all(name.startswith("site_") for name in summary["sites"])
    assert "PHANTOM-" not in (tmp_path / "m.csv").read_text()


def test_the_table_tells_splits_sites_and_what_was_left_out(tmp_path: Path) -> None:
    for at in range(12):
        png(tmp_path / "set" / "ab"[at % 2] / f"{at}.png", at)
    png(tmp_path / "set" / "a" / "0_mask.png")
    done = call("manifest", "build", tmp_path / "set", "--out", tmp_path / "m.csv")
    assert done.code == 0
    for said in (
        "12 rows, images", "(patients)", "labels   the names of the folders", "sites    unknown (12)",
        "left out 1: a mask, by its name (a/0_mask.png)", "warning  No patient IDs", "medopt plan",
    ):  # fmt: skip
        assert said in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--split", "0.7,0.3"), 2, "--split takes three shares"),
        (("--split", "0.7,0.3,a"), 2, "--split takes three shares"),
        (("--kind", "movie"), 2, "--kind"),
        (("--labels", "none.csv"), 3, "There is no table of labels"),
    ],
)
def test_refusals_are_one_paragraph(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    for at in range(12):
        png(tmp_path / "set" / "ab"[at % 2] / f"{at}.png", at)
    call("manifest", "build", tmp_path / "set", "--out", tmp_path / "m.csv", *words).refused(code, said)
    assert not (tmp_path / "m.csv").exists()


def test_names_of_folders_that_may_be_patients_are_never_shown(tmp_path):
    for at in range(40):
        place = tmp_path / "s" / f"MILLER_ANNA{'ABCDEFGH'[at % 8]}" / ("normal", "lesion")[at // 8 % 2]
        png(place / f"{at}.png", at)
        png(place / f"{at}_mask.png", at)
    result = call("manifest", "build", tmp_path / "s", "--out", tmp_path / "m.csv")
    assert result.code == 0, result.stderr
    assert "MILLER" not in result.stdout + result.stderr
    assert "*/normal/0_mask.png" in result.stdout
    assert "8 folders above the classes count as patients" in result.stdout
    assert "MILLER" not in (tmp_path / "m.card.yaml").read_text()

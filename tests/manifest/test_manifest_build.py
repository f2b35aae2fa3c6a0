"""From a source to a manifest that read_manifest reads, its card, and a datalist."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from scans_of_patients import mr_series, png

from medopt.core.errors import ConfigError, DataError
from medopt.core.privacy import pseudonym
from medopt.imaging import read_scan
from medopt.manifest.build import BuildOptions, BuiltManifest, build_manifest
from medopt.manifest.card import load_card
from medopt.manifest.check import check_cases
from medopt.manifest.sources.dicom import site_of
from medopt.manifest.sources.scan_listing import SourceOptions
from medopt.manifest.splits import SplitRules
from medopt.manifest.table import read_manifest

PATIENTS = [f"MRN-{at:04d}-Miller" for at in range(12)]


def rows_of(built: BuiltManifest) -> list[dict[str, str]]:
    with built.manifest.open(newline="") as stream:
        return list(csv.DictReader(stream))


def labels_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Eight images of each of two classes, one folder a class."""
    for name in ("ill", "well"):
        for at in range(8):
            png(tmp_path / "scans" / name / f"{at}.png", at)
    return tmp_path / "scans"


@pytest.fixture
def hospital(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve patients with a T1 and a T2 series each, from two institutions; their labels by patient."""
    for at, patient in enumerate(PATIENTS):
        for description in ("T1 axial", "T2 axial"):
            place = tmp_path / "export" / f"{at}" / description[:2]
            institution = "St. Mary " if at % 2 else "NORTH CLINIC"
            mr_series(place, patient, f"1.2.{at}", description, InstitutionName=institution, AccessionNumber=f"ACC{at}")
    labels = labels_csv(
        tmp_path / "labels.csv", "PatientID;label", *(f"{p};{'ab'[i % 4 // 2]}" for i, p in enumerate(PATIENTS))
    )
    return tmp_path / "export", labels


def options(labels: Path | None = None, **more: Any) -> BuildOptions:
    return BuildOptions(labels=labels, **more)


def test_class_folders_need_nothing_else_and_warn(classes, tmp_path, study):
    built = build_manifest(classes, tmp_path / "m.csv", options())
    cases = read_manifest(built.manifest, study(labels=["well", "ill"]))
    assert len(cases) == 16
    assert check_cases(cases, built.listing.root, study(labels=["well", "ill"])) == []
    assert built.warnings[0].startswith("No patient IDs found")
    card = load_card(built.manifest)
    assert card is not None
    assert card.labels == {"ill": "8 rows", "well": "8 rows"}
    assert any("No patient IDs found" in note for note in card.notes)
    assert str(tmp_path) not in built.card.read_text()


def test_dicom_rows_hold_pseudonyms_and_can_be_read(hospital, tmp_path, study):
    source, labels = hospital
    built = build_manifest(source, tmp_path / "m.csv", options(labels, source=SourceOptions(description="^T1")))
    rows = rows_of(built)
    assert len(rows) == 12
    assert rows[0] == {
        "image": "0/T1",
        "patient_id": pseudonym(PATIENTS[0]),
        "study_uid": pseudonym("1.2.0"),
        "series_uid": rows[0]["series_uid"],
        "site": site_of("north  clinic"),
        "age": "61",
        "sex": "F",
        "label": "a",
        "split": rows[0]["split"],
    }
    written = built.manifest.read_text() + built.card.read_text()
    assert not [name for name in (*PATIENTS, "St. Mary", "NORTH", "ACC1") if name in written]
    found = study(labels=["a", "b"])
    cases = read_manifest(built.manifest, found)
    assert check_cases(cases, built.listing.root, found) == []
    assert read_scan(cases[0].image, data=source).array.shape == (1, 3, 4, 4)
    assert dict(built.left_out) == {f"{at}/T2/I0": "the description does not match --description" for at in range(12)}


def test_several_series_under_a_label_of_the_patient_are_refused_with_the_list(hospital, tmp_path):
    source, labels = hospital
    with pytest.raises(DataError) as caught:
        build_manifest(source, tmp_path / "m.csv", options(labels))
    text = str(caught.value)
    assert "12 of 12 studies have several series, and the labels are by patient" in text
    assert "'T1 axial', axial, 3 frames in 12 series; 'T2 axial', axial, 3 frames in 12 series" in text
    assert "--series-rules STUDY.yaml" in text
    assert not list(tmp_path.glob("m.*"))


def test_labels_by_series_keep_every_series(hospital, tmp_path):
    source, _ = hospital
    by_file = labels_csv(
        tmp_path / "l.csv", "file,label", *(f"{at}/{name},{name}" for at in range(12) for name in ("T1", "T2"))
    )
    built = build_manifest(source, tmp_path / "m.csv", options(by_file))
    rows = rows_of(built)
    assert len(rows) == 24
    splits = {row["patient_id"]: row["split"] for row in rows}
    assert all(splits[row["patient_id"]] == row["split"] for row in rows)


def test_a_site_is_held_out_by_its_name(hospital, tmp_path):
    source, labels = hospital
    rules = SplitRules(hold_out="st. mary")
    built = build_manifest(
        source, tmp_path / "m.csv", options(labels, rules=rules, source=SourceOptions(description="T1"))
    )
    assert {row["site"] for row in rows_of(built) if row["split"] == "test"} == {site_of("St. Mary")}
    by_scanner = SourceOptions(description="T1", site_from="scanner")
    built = build_manifest(source, tmp_path / "s.csv", options(labels, source=by_scanner))
    assert {row["site"] for row in rows_of(built)} == {"unknown"}  # no manufacturer in these headers


def test_localizers_and_derived_series_are_left_out_unless_kept(hospital, tmp_path):
    source, labels = hospital
    mr_series(source / "0" / "scout", PATIENTS[0], "1.2.0", "T1 scout", kind=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    mr_series(source / "1" / "adc", PATIENTS[1], "1.2.1", "T1 map", kind=("DERIVED", "SECONDARY"))
    chosen = SourceOptions(description="T1")
    reasons = dict(build_manifest(source, tmp_path / "m.csv", options(labels, source=chosen)).left_out)
    assert reasons["0/scout/I0"] == "a localizer (--keep-derived keeps it)"
    assert reasons["1/adc/I0"] == "derived from other images (--keep-derived keeps it)"
    with pytest.raises(DataError, match="2 of 12 studies have several series"):
        build_manifest(
            source, tmp_path / "m.csv", options(labels, source=SourceOptions(description="T1", keep_derived=True))
        )


def test_files_of_two_patients_under_one_series_uid_keep_their_own_patient(tmp_path):
    """Some anonymizers give all files the same UIDs; a projection image is a row of its own."""
    for at in range(12):
        mr_series(
            tmp_path / "export",
            f"P{at}",
            "1.2",
            "CR",
            slices=1,
            name=f"{at}_",
            Modality="CR",
            SeriesInstanceUID="1.2.9",
        )
    labels = labels_csv(tmp_path / "l.csv", "patient,label", *(f"P{at},{at % 2}" for at in range(12)))
    rows = rows_of(build_manifest(tmp_path / "export", tmp_path / "m.csv", options(labels)))
    assert {row["patient_id"] for row in rows} == {pseudonym(f"P{at}") for at in range(12)}


def test_unknown_patients_are_refused_with_the_way_out(classes, tmp_path):
    rows = [f"{name}/{at}.png,{name}" for name in ("ill", "well") for at in range(8)]
    labels = labels_csv(tmp_path / "l.csv", "file,label", *rows)
    with pytest.raises(DataError, match=r"The patient of 16 of 16 scans is not known: ill/0.png.*--patient-per-image"):
        build_manifest(classes, tmp_path / "m.csv", options(labels))
    built = build_manifest(classes, tmp_path / "m.csv", options(labels, patient_per_image=True))
    assert len({row["patient_id"] for row in rows_of(built)}) == 16
    assert "each image is treated as its own patient" in built.card.read_text()
    built = build_manifest(classes, tmp_path / "m.csv", options(labels, patient=r"/(\d)\.png$", rules=SplitRules()))
    assert {row["patient_id"] for row in rows_of(built)} == {pseudonym(f"{at}") for at in range(8)}
    with pytest.raises(DataError, match="finds no patient in 16 of 16 paths"):
        build_manifest(classes, tmp_path / "m.csv", options(labels, patient=r"(P\d+)"))
    for wrong in ("(", "x", "(a)(b)"):
        with pytest.raises(ConfigError, match="--patient"):
            build_manifest(classes, tmp_path / "m.csv", options(labels, patient=wrong))


def test_the_table_of_labels_may_tell_the_patient(classes, tmp_path):
    rows = [f"{name}/{at}.png,{name},P{name}{at // 2}" for name in ("ill", "well") for at in range(8)]
    labels = labels_csv(tmp_path / "l.csv", "file,label,patient_id", *rows)
    built = build_manifest(classes, tmp_path / "m.csv", options(labels))
    assert len({row["patient_id"] for row in rows_of(built)}) == 8
    assert built.warnings == ()


def test_some_patients_unknown_is_said(tmp_path):
    for at in range(12):
        patient = f"P{at}" if at else "ANONYMOUS"
        mr_series(tmp_path / "export" / f"{at}", patient, f"1.2.{at}")
    labels = labels_csv(tmp_path / "l.csv", "file,label", *(f"{at},{at % 2}" for at in range(12)))
    with pytest.raises(DataError, match="The patient of 1 of 12 scans is not known: 0"):
        build_manifest(tmp_path / "export", tmp_path / "m.csv", options(labels))
    built = build_manifest(tmp_path / "export", tmp_path / "m.csv", options(labels, patient_per_image=True))
    assert built.warnings[0].startswith("The patients of 1 of 12 scans are not known: each image is treated as its own")


def test_a_fold_needs_folds(classes, tmp_path):
    with pytest.raises(ConfigError, match="--fold 1 needs --folds"):
        build_manifest(classes, tmp_path / "m.csv", options(rules=SplitRules(fold=1)))


def test_multi_label(classes, tmp_path, study):
    rows = [f"{name}/{at}.png,{at % 2},{int(name == 'ill')}" for name in ("ill", "well") for at in range(8)]
    labels = labels_csv(tmp_path / "l.csv", "file,mass,fluid", *rows)
    built = build_manifest(
        classes, tmp_path / "m.csv", options(labels, label_columns=("mass", "fluid"), patient_per_image=True)
    )
    several = study(task="multilabel", labels=["mass", "fluid"])
    cases = read_manifest(built.manifest, several)
    assert {case.label for case in cases} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert check_cases(cases, classes, several) == []
    with pytest.raises(ConfigError, match="--label-column split is a column of every manifest"):
        build_manifest(classes, tmp_path / "m.csv", options(labels, label_columns=("mass", "split")))


def test_scans_without_a_label_are_left_out_and_rows_without_a_scan_listed(classes, tmp_path):
    rows = [f"{name}/{at}.png,{name}" for name in ("ill", "well") for at in range(7)]
    labels = labels_csv(tmp_path / "l.csv", "file,label", *rows, "ill/99.png,ill")
    built = build_manifest(classes, tmp_path / "m.csv", options(labels, patient_per_image=True))
    assert len(built.rows) == 14
    assert built.left_out == (("ill/7.png", "no label in the table"), ("well/7.png", "no label in the table"))
    assert built.orphans == ("row 16 (99.png)",)


def test_a_datalist_comes_back_as_it_was_written(classes, tmp_path):
    first = build_manifest(
        classes, tmp_path / "m.csv", options(datalist=tmp_path / "d.json", rules=SplitRules(folds=4))
    )
    written = json.loads((tmp_path / "d.json").read_text())
    assert written["labels"] == {"0": "ill", "1": "well"}
    assert {item["label"] for item in written["training"]} == {0, 1}
    again = build_manifest(tmp_path / "d.json", tmp_path / "n.csv", options(source=SourceOptions(root=classes)))
    keys = ("image", "label", "split")
    assert [[row[key] for key in keys] for row in again.rows] == [[row[key] for key in keys] for row in first.rows]


def test_the_same_command_writes_the_same_bytes(classes, tmp_path):
    first = build_manifest(classes, tmp_path / "m.csv", options()).manifest.read_bytes()
    assert build_manifest(classes, tmp_path / "m.csv", options()).manifest.read_bytes() == first


def test_nothing_else_is_written_over(classes, tmp_path):
    labels = labels_csv(tmp_path / "labels.csv", "file,label", "ill/0.png,x")
    for out, said in (("labels.csv", "another file of this command"), ("m.txt", "takes a file named .csv")):
        with pytest.raises(ConfigError, match=said):
            build_manifest(classes, tmp_path / out, options(labels))
    with pytest.raises(ConfigError, match="is not a manifest that medopt built"):
        build_manifest(classes, tmp_path / "labels.csv", options())
    (tmp_path / "study.card.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match="is not a manifest's card"):
        build_manifest(classes, tmp_path / "study.csv", options())
    assert labels.read_text() == "file,label\nill/0.png,x\n"


def test_one_class_and_no_labels(classes, tmp_path, hospital):
    labels = labels_csv(tmp_path / "l.csv", "file,label", "ill/0.png,x", "ill/1.png,x", "none.png,y")
    with pytest.raises(
        DataError, match=r"All 2 scans have the label 'x'.* 1 rows of the table match no scan.*none\.png"
    ):
        build_manifest(classes, tmp_path / "m.csv", options(labels, patient_per_image=True))
    with pytest.raises(DataError, match=r"gives no labels\. Give a table with --labels"):
        build_manifest(hospital[0], tmp_path / "m.csv", options())


def test_own_splits_of_a_tree_are_kept(tmp_path):
    for at in range(20):
        png(tmp_path / "set" / ("Training" if at < 16 else "Testing") / "ab"[at % 2] / f"{at}.png", at)
    built = build_manifest(tmp_path / "set", tmp_path / "m.csv", options())
    assert {row["image"] for row in built.rows if row["split"] == "test"} == {
        f"Testing/{'ab'[at % 2]}/{at}.png" for at in range(16, 20)
    }
    assert sum(row["split"] == "val" for row in built.rows) == 2


def persons_source(tmp_path: Path, ids: list[str]) -> Path:
    for at, patient in enumerate(ids):
        mr_series(tmp_path / "export" / f"{at}", patient, f"1.2.{at}", AccessionNumber=f"A{at}")
    return tmp_path / "export"


def test_several_identifiers_of_one_person_of_the_table_are_one_patient(tmp_path):
    source = persons_source(tmp_path, [f"ANON{at}" for at in range(24)])
    rows = [f"A{at},PERSON{at % 8},{at % 2}" for at in range(24)]
    labels = labels_csv(tmp_path / "l.csv", "accession_number,patient_id,label", *rows)
    built = rows_of(build_manifest(source, tmp_path / "m.csv", options(labels)))
    splits: dict[str, set[str]] = {}
    for row in built:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(splits) == 8
    assert {len(parts) for parts in splits.values()} == {1}


def test_one_identifier_of_several_persons_is_refused_unless_the_table_decides(tmp_path):
    source = persons_source(tmp_path, ["EXPORT"] * 12)
    rows = [f"A{at},PERSON{at},{at % 2}" for at in range(12)]
    labels = labels_csv(tmp_path / "l.csv", "accession_number,patient_id,label", *rows)
    with pytest.raises(DataError, match=r"Patients of the source that are several.*, 1:.*--patient table") as error:
        build_manifest(source, tmp_path / "m.csv", options(labels))
    assert "EXPORT" not in str(error.value) and "PERSON" not in str(error.value)
    built = build_manifest(source, tmp_path / "m.csv", options(labels, patient="table"))
    assert len({row["patient_id"] for row in rows_of(built)}) == 12


def test_a_datalist_and_a_table_that_name_the_same_patients_agree(tmp_path):
    for at in range(12):
        png(tmp_path / f"{at}.png", at)
    items = [{"image": f"{at}.png", "patient_id": f"sub-{at:02d}"} for at in range(12)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    rows = [f"{at}.png,{at // 2:02d},{'ab'[at // 2 % 2]}" for at in range(12)]
    labels = labels_csv(tmp_path / "l.csv", "file,participant_id,label", *rows)
    built = rows_of(build_manifest(tmp_path / "list.json", tmp_path / "m.csv", options(labels)))
    assert len({row["patient_id"] for row in built}) == 6


def test_five_spellings_are_two_classes_and_missing_words_are_left_out(classes, tmp_path):
    cells = ["lesion", "Lesion", '"No "', "no", "Lesion", "No", "n/a", "NA"] * 2
    names = [f"{name}/{at}.png" for name in ("ill", "well") for at in range(8)]
    labels = labels_csv(tmp_path / "l.csv", "file,label", *(f"{n},{c}" for n, c in zip(names, cells, strict=True)))
    built = build_manifest(classes, tmp_path / "m.csv", options(labels, patient_per_image=True))
    assert {row["label"] for row in built.rows} == {"Lesion", "No"}
    assert [reason for _, reason in built.left_out].count("the label is missing: 'n/a'") == 2
    assert len(built.left_out) == 4
    assert any("'lesion' (2)" in text for text in built.warnings)


def test_labels_are_renamed_and_an_empty_name_leaves_out(classes, tmp_path):
    rows = [f"{name}/{at}.png,{(0, 1, '1.0', 9)[at % 4]}" for name in ("ill", "well") for at in range(8)]
    labels = labels_csv(tmp_path / "l.csv", "file,grade", *rows)
    built = build_manifest(
        classes,
        tmp_path / "m.csv",
        options(labels, patient_per_image=True, rename={"0": "healthy", "1": "nodule", "9": ""}),
    )
    assert {row["label"] for row in built.rows} == {"healthy", "nodule"}
    assert len(built.left_out) == 4
    assert any("column grade" in text for text in built.warnings)  # an only column that may be the label


def test_class_folders_in_two_spellings_are_merged_and_said(tmp_path):
    for at in range(16):
        png(tmp_path / "s" / ("Lesion", "No", "lesion", "no ")[at % 4] / f"{at}.png", at)
    built = build_manifest(tmp_path / "s", tmp_path / "m.csv", options())
    assert {row["label"] for row in built.rows} == {"Lesion", "No"}
    assert any("These spellings are one label, 'Lesion'" in text for text in built.warnings)

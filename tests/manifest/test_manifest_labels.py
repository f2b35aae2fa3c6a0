"""Tables of labels: how they are read, and which scan a row means."""

from __future__ import annotations

from pathlib import Path

import pytest

from medopt.core.errors import ConfigError, DataError
from medopt.manifest.label_join import join_labels
from medopt.manifest.label_table import read_labels
from medopt.manifest.sources.scan_listing import Scan

PLANTED = "MRN-4711-Miller"
SCANS = (
    Scan("a/1.png", ("a/1.png",), patient=PLANTED, study="1.2.3", accession="A1", series="1.2.3.1"),
    Scan("a/2.png", ("a/2.png",), patient=PLANTED, study="1.2.4", accession="A2", series="1.2.4.1"),
    Scan("b/1.png", ("b/1.png",), patient="P2", study="1.2.5", accession="A3", series="1.2.5.1"),
)


def table(tmp_path: Path, *rows: str, bom: bool = False) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(("\ufeff" if bom else "") + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("header", "cells", "key", "found"),
    [
        ("PatientID", PLANTED, "patient", {0: ("x",), 1: ("x",)}),
        ("participant_id", "P2", "patient", {2: ("x",)}),
        ("study", "1.2.4", "study", {1: ("x",)}),
        ("Study", "A2", "accession", {1: ("x",)}),
        ("accession number", "A3", "accession", {2: ("x",)}),
        ("SeriesInstanceUID", "1.2.5.1", "series", {2: ("x",)}),
        ("file", "a/1.png", "file", {0: ("x",)}),
        ("filename", "2.png", "file", {1: ("x",)}),
        ("image", "2", "file", {1: ("x",)}),
        ("path", r"C:\data\b\1.png", "file", {2: ("x",)}),
        ("Image Path", "/elsewhere/set/a/1.jpg", "file", {0: ("x",)}),
    ],
)
def test_a_row_finds_its_scans(tmp_path, separator, header, cells, key, found):
    path = table(tmp_path, f"{header}{separator}Label", f"{cells}{separator}x", bom=True)
    joined = join_labels(read_labels(path), SCANS, ["label"])
    assert (joined.key, joined.labels) == (key, found)


def test_the_column_that_finds_most_is_the_key_and_of_equals_the_finest(tmp_path):
    rows = ["patient,file,label", f"{PLANTED},a/1.png,x", f"{PLANTED},a/2.png,y", "P2,b/1.png,y"]
    joined = join_labels(read_labels(table(tmp_path, *rows)), SCANS, ["label"])
    assert (joined.key, joined.labels) == ("file", {0: ("x",), 1: ("y",), 2: ("y",)})
    assert joined.patients == {0: PLANTED, 1: PLANTED, 2: "P2"}
    rows = ["patient,image,label", f"{PLANTED},nowhere,x", "P2,b/1.png,y"]
    assert join_labels(read_labels(table(tmp_path, *rows)), SCANS, ["label"]).key == "patient"


def test_orphans_are_listed_without_identifiers_and_ambiguous_names_by_name(tmp_path):
    joined = join_labels(read_labels(table(tmp_path, "patient_id,label", "P2,x", "Smith-1,y")), SCANS, ["label"])
    (orphan,) = joined.orphans
    assert orphan.startswith("row 3 (patient ")
    assert "Smith" not in orphan
    joined = join_labels(read_labels(table(tmp_path, "file,label", "1.png,x", "2.png,y")), SCANS, ["label"])
    assert joined.ambiguous == ("row 2 (1.png)",)
    assert joined.labels == {1: ("y",)}


def test_a_folder_that_disagrees_is_no_match(tmp_path):
    with pytest.raises(DataError, match="No row of"):
        join_labels(read_labels(table(tmp_path, "file,label", "b/2.png,x")), SCANS, ["label"])


def test_two_labels_for_one_key_are_refused_and_the_same_twice_is_not(tmp_path):
    twice = table(tmp_path, "patient,label", f"{PLANTED},x", f"{PLANTED},x", "P2,y")
    assert join_labels(read_labels(twice), SCANS, ["label"]).labels[0] == ("x",)
    with pytest.raises(DataError, match="two labels for one patient: rows 2 and 4") as caught:
        join_labels(
            read_labels(table(tmp_path, "patient,label", f"{PLANTED},x", "P2,y", f"{PLANTED},y")), SCANS, ["label"]
        )
    assert PLANTED not in str(caught.value)


def test_an_empty_label_is_none(tmp_path):
    joined = join_labels(
        read_labels(table(tmp_path, "file,label", "a/1.png,x", "a/2.png,", "b/1.png,y")), SCANS, ["label"]
    )
    assert joined.labels == {0: ("x",), 2: ("y",)}


def test_several_label_columns_are_zeros_and_ones(tmp_path):
    rows = ["file,mass,fluid", "a/1.png,1,0.0", "a/2.png,0,1"]
    joined = join_labels(read_labels(table(tmp_path, *rows)), SCANS, ["mass", "fluid"])
    assert joined.labels == {0: ("1", "0"), 1: ("0", "1")}
    with pytest.raises(DataError, match="row 2, column fluid: the value is not 0 or 1"):
        join_labels(read_labels(table(tmp_path, "file,mass,fluid", f"a/1.png,1,{PLANTED}")), SCANS, ["mass", "fluid"])


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        (("file,diagnosis", "a/1.png,x"), ConfigError, "has no column label: it has file, diagnosis"),
        (("code,label", "a/1.png,x"), DataError, "no column that says which scan a row means. Found: code, label"),
        ((f"{PLANTED},x", "P2,y"), ConfigError, "row 1 is not shown"),
        (("file,label", "a/1.png,x,y"), DataError, "3 cells in row 2 under a header of 2"),
        (("file,label", 'a/1.png,"x'), DataError, "not a CSV"),
        (("file,label",), DataError, "is empty"),
        (("file,label,label", "a,b,c"), DataError, "a column twice"),
        (("patient,label", f"0{PLANTED},x"), DataError, "remove leading zeros"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, rows, error, said):
    with pytest.raises(error, match=said) as caught:
        join_labels(read_labels(table(tmp_path, *rows)), SCANS, ["label"])
    assert PLANTED not in str(caught.value)


def test_a_key_column_can_be_named(tmp_path):
    joined = join_labels(read_labels(table(tmp_path, "case no,label", "A2,x")), SCANS, ["label"], key="case_no")
    assert (joined.key, joined.labels) == ("accession", {1: ("x",)})


def test_a_measurement_is_no_class(tmp_path):
    scans = [Scan(f"{at}.png", (f"{at}.png",)) for at in range(60)]
    path = table(tmp_path, "file,label", *(f"{at}.png,{at / 7}" for at in range(60)))
    with pytest.raises(DataError, match="60 different values, which are not classes"):
        join_labels(read_labels(path), scans, ["label"])


def test_not_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(DataError, match="There is no table"):
        read_labels(tmp_path / "none.csv")


def test_two_patients_for_one_scan_are_refused(tmp_path):
    rows = ["study,patient_id,label", "1.2.3,P1,x", "1.2.3,P2,x"]
    with pytest.raises(DataError, match="row 3 give a scan another patient"):
        join_labels(read_labels(table(tmp_path, *rows)), SCANS, ["label"])


@pytest.mark.parametrize(
    "text",
    [
        "file,label,,\na/1.png,x,,\na/2.png,y,,\n,,,\n",
        "sep=;\nfile;label\na/1.png;x\na/2.png;y\n",
        "file,label\na/1.png,x\v\na/2.png,y\n",
        "file\tlabel\na/1.png\tx\na/2.png\ty\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    path = tmp_path / "l.csv"
    path.write_text(text)
    assert join_labels(read_labels(path), SCANS, ["label"]).labels == {0: ("x",), 1: ("y",)}


def test_a_name_in_either_unicode_form_is_found(tmp_path):
    scans = [Scan(f"{name}.png", (f"{name}.png",), patient=name) for name in ("Mu\u0308ller", "J\u00f6rg")]
    for header in ("file", "patient_id"):
        path = table(tmp_path, f"{header},label", "M\u00fcller,x", "Jo\u0308rg,y")
        assert join_labels(read_labels(path), scans, ["label"]).labels == {0: ("x",), 1: ("y",)}


def test_an_only_column_that_may_be_the_label_is_taken_and_said(tmp_path):
    read = read_labels(table(tmp_path, "file,age,Diagnosis", "a/1.png,61,x"))
    columns, note = read.default_label()
    assert columns == ("Diagnosis",) and "Diagnosis" in note
    assert read_labels(table(tmp_path, "file,a,b", "a/1.png,61,x")).default_label() == (("label",), "")

from __future__ import annotations

import csv
import errno
import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medopt.config import Study
from medopt.core.errors import DataError, StorageError
from medopt.core.privacy import pseudonym
from medopt.core.records import Case
from medopt.imaging.scan_path import npz_member, safe_relative_path
from medopt.manifest import table
from medopt.manifest.infer_study import infer_study
from medopt.manifest.run_manifest import manifest_digest, write_run_manifest
from medopt.manifest.table import read_manifest

PLANTED = "MRN-4711-Miller"


def refused(path: Path, study: Study) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(path, study)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert PLANTED not in text
    return text


def test_rows_become_cases_with_pseudonyms(manifest, study):
    path = manifest(
        f"a/1.png,{PLANTED},malignant,train,north,1.2.3,1.2.3.4,61,F,mine",
        "./a//2.png, P2 ,benign,test,,,,,,yours",
        header="image,patient_id,label,split,site,study_uid,series_uid,age,sex,case_id",
    )
    first, second = read_manifest(path, study())
    known = (pseudonym("mine"), pseudonym(PLANTED), "a/1.png", (1,), "train", "north", "1.2.3", "1.2.3.4")
    assert first == Case(*known, groups=(("sex", "F"), ("age", "61")))
    assert second == Case(pseudonym("yours"), pseudonym("P2"), "a/2.png", (0,), "test")


def test_case_id_defaults_to_the_image_and_unknown_columns_are_ignored(manifest, study):
    (case,) = read_manifest(manifest("1.png,P,benign,val,x", header="image,patient_id,label,split,remark"), study())
    assert case.case_id == pseudonym("1.png")
    assert case.site == "unknown"


def test_byte_order_mark_blank_rows_and_quotes(tmp_path, study):
    path = tmp_path / "m.csv"
    path.write_bytes('\ufeffimage,patient_id,label,split\r\n\r\n"a, b.png",P,benign,train\r\n'.encode())
    assert read_manifest(path, study())[0].image == "a, b.png"


def test_multilabel_reads_one_column_a_label(manifest, study):
    several = study(task="multilabel", labels=["mass", "effusion", "nodule"])
    path = manifest("1.png,P,0,1,1,train", header="image,patient_id,mass,effusion,nodule,split")
    assert read_manifest(path, several)[0].label == (0, 1, 1)
    text = refused(manifest("1.png,P,0,1,yes,train", header="image,patient_id,mass,effusion,nodule,split"), several)
    assert "nodule: row 2: 'yes'" in text
    assert "known are 0, 1" in text
    text = refused(manifest("1.png,P,0,1,train", header="image,patient_id,mass,effusion,split"), several)
    assert "no column nodule" in text


@pytest.mark.parametrize("column", ["image", "patient_id", "label", "split"])
def test_missing_column_is_named_beside_those_found(manifest, study, column):
    names = [name for name in ("image", "patient_id", "label", "split") if name != column]
    text = refused(manifest("x,y,z", header=",".join(names)), study())
    assert f"no column {column}. Found: {', '.join(names)}" in text


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image,Patient ID,label,split", "'Patient ID': did you mean patient_id?"),
        ("image,patient_id,label,split,Site", "'Site': did you mean site?"),
        ("image;patient_id;label;split", "save it with commas"),
        ("image,patient_id,label,split,label", "column label more than once"),
        (f"a.png,{PLANTED},benign,train", "has no header"),
        ("", "is empty"),
    ],
)
def test_header_refused(manifest, study, header, expected):
    assert expected in refused(manifest(f"a.png,{PLANTED},benign,train", header=header), study())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("b.png,,benign,train", "patient_id: row 3: no patient is given"),
        ("b.png,Unknown,benign,train", "patient_id: row 3: 'Unknown' no patient is given"),
        (
            "b.png,P,bening,train",
            "label: row 3: 'bening' is not known: did you mean benign? known are benign, malignant",
        ),
        ("b.png,P,Benign,train", "did you mean benign?"),
        ("b.png,P,,train", "label: row 3: the cell is empty"),
        ("b.png,P,benign,validation", "split: row 3: 'validation' is not known: did you mean val?"),
        ("b.png,P,benign,Train", "did you mean train?"),
        (f"b.png,P,{PLANTED},train", "label: row 3: (the value is a patient_id too and is not shown)"),
        (f"b.png,P,benign,{PLANTED}", "split: row 3: (the value is a patient_id too and is not shown)"),
        (",P,benign,train", "image: row 3: the cell is empty"),
        ("/etc/passwd,P,benign,train", "image: row 3: '/etc/passwd' it is absolute"),
        ("C:/x.png,P,benign,train", "it is absolute"),
        ("a/../../x.png,P,benign,train", "leads out of its folder"),
        ("a\\x.png,P,benign,train", "write / between folders"),
        ("x.npz#images,P,benign,train", "file.npz#array/index"),
        ("x.npz#images/-1,P,benign,train", "file.npz#array/index"),
        ("./a.png,P,benign,train", "image: row 3: the same as row 2 (a.png)"),
        (f"b.png,{PLANTED},benign,train,more", "whole row: row 3: 5 cells under a header of 4"),
        (f"b.png,{PLANTED}", "whole row: row 3: 2 cells under a header of 4"),
    ],
)
def test_row_refused(manifest, study, row, expected):
    assert expected in refused(manifest(f"a.png,{PLANTED},benign,train", row), study())


def test_all_columns_are_told_at_once_five_rows_each(manifest, study):
    text = refused(manifest(*(f"{i}.png,P{i},cat,dev" for i in range(8))), study())
    assert "label: row 2: " in text
    assert "split: row 2: " in text
    assert text.count("and 3 more") == 2
    assert "row 7" not in text


def test_blocks_of_rows_are_one_table(manifest, study, monkeypatch):
    """A row is numbered, compared and refused as if all rows were read at once; equal cells of a block are one text."""
    rows = [f"{at}.png,P{at // 2},benign,train,north" for at in range(9)]
    header = "image,patient_id,label,split,site"
    whole = read_manifest(manifest(*rows, header=header), study())
    monkeypatch.setattr(table, "BLOCK", 2)
    cases = read_manifest(manifest(*rows, header=header), study())
    assert cases == whole and cases[0].site is cases[1].site and cases[0].label is cases[8].label
    rows[3], rows[5], rows[8] = "3.png,P1,benign,dev,north", "0.png,P2,cat,train,north", "8.png,P1,benign,train"
    text = refused(manifest(*rows, header=header), study())
    parts = ("split: row 5: 'dev'", "image: row 7: the same as row 2 (0.png)", "whole row: row 10: 4 cells")
    assert all(part in text for part in parts) and text.index("split") < text.index("label: row 7: 'cat'")


def test_repeated_case_id_is_refused_without_showing_it(manifest, study):
    header = "image,patient_id,label,split,case_id"
    text = refused(manifest(f"a,P,benign,train,{PLANTED}", f"b,Q,benign,train,{PLANTED}", header=header), study())
    assert "case_id: row 3: the same as row 2" in text
    assert pseudonym(PLANTED) not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"image,patient_id,label,split\n", "is empty"),
        (b"image,patient_id,label,split\n\n,,,\n", "is empty"),
        (f"image,patient_id,label,split\na.png,{PLANTED},b\xe4,train\n".encode("latin-1"), "not UTF-8"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8"),
        ("image,patient_id,label,split\n".encode("utf-16"), "not UTF-8"),
        (f'image,patient_id,label,split\n"a.png,{PLANTED},benign,train\n'.encode(), "not a CSV"),
    ],
)
def test_file_refused(tmp_path, study, content, expected):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    assert expected in refused(path, study())


def test_absent_file_and_folder_are_refused(tmp_path, study):
    assert "No such file" in refused(tmp_path / "none.csv", study())
    assert "Is a directory" in refused(tmp_path, study())


def test_run_manifest_holds_no_identifier(tmp_path, manifest, study):
    header = "image,patient_id,label,split,study_uid"
    cases = read_manifest(manifest(f"1.png,{PLANTED},malignant,train,1.2.840.7", header=header), study())
    written = tmp_path / "run" / "manifest.csv"
    write_run_manifest(written, cases, study())
    text = written.read_text()
    assert PLANTED not in text
    assert "1.2.840.7" not in text
    (row,) = csv.DictReader(text.splitlines())
    assert row["case_id"] == cases[0].case_id
    assert row["patient_id"] == pseudonym(PLANTED)
    assert (row["label"], row["split"], row["site"]) == ("malignant", "train", "unknown")
    assert [path.name for path in written.parent.iterdir()] == ["manifest.csv"]
    assert read_manifest(written, study())[0].image == "1.png"


def test_run_manifest_of_several_labels(tmp_path, study):
    several = study(task="multilabel", labels=["mass", "effusion"])
    cases = [Case("c", "p", "1.png", (1, 0), "val")]
    write_run_manifest(tmp_path / "run.csv", cases, several)
    assert read_manifest(tmp_path / "run.csv", several)[0].label == (1, 0)


def test_a_full_disk_leaves_no_run_manifest(tmp_path, study, monkeypatch):
    def full(*words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medopt.core.provenance.os.fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_run_manifest(tmp_path / "manifest.csv", [], study())
    assert list(tmp_path.iterdir()) == []


cases_strategy = st.lists(
    st.builds(
        Case,
        case_id=st.text(min_size=1, max_size=4),
        patient_id=st.text(min_size=1, max_size=4),
        image=st.text(min_size=1, max_size=4),
        label=st.tuples(st.integers(0, 1)),
        split=st.sampled_from(["train", "val", "test"]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda case: case.case_id,
)


@given(cases_strategy, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_digest_knows_content_not_order(cases: list[Case], rng: random.Random):
    shuffled = rng.sample(cases, len(cases))
    assert manifest_digest(shuffled) == manifest_digest(cases)
    changed = [replace(cases[0], label=(1 - cases[0].label[0],)), *cases[1:]]
    assert manifest_digest(changed) != manifest_digest(cases)
    assert manifest_digest(cases[1:]) != manifest_digest(cases)


def test_digest_stays_the_same_from_version_to_version():
    case = Case("c", "p", "a.png", (1,), "train", "north")
    written = '["c", "p", "a.png", [1], "train", "north", "", ""]\n'
    assert manifest_digest([case]) == hashlib.sha256(written.encode()).hexdigest()


@given(st.text(max_size=30))
@settings(max_examples=300)
def test_no_accepted_path_leaves_its_folder(text: str):
    folder = Path("/data/study")
    try:
        accepted = safe_relative_path(text)
    except ValueError:
        return
    assert (folder / accepted).resolve().is_relative_to(folder)
    assert safe_relative_path(accepted) == accepted


@given(st.text(alphabet="abc/._- ,'\"é", min_size=1, max_size=20), st.integers(0, 10**6))
@settings(max_examples=100, suppress_health_check=[HealthCheck.filter_too_much])
def test_npz_member_round_trip(array: str, row: int):
    assert npz_member(f"a b/c.npz#{array}/{row}") == ("a b/c.npz", array, row)
    assert npz_member(f"a#{array}") is None


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6)), min_size=1, max_size=4))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cells_give_cases_or_a_data_error(tmp_path, study, rows):
    path = tmp_path / "any.csv"
    with path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        csv.writer(stream).writerows([("image", "patient_id", "label", "split"), *((*row, "train") for row in rows)])
    try:
        assert len(read_manifest(path, study(labels=["", "a"]))) >= 1
    except DataError as error:
        assert str(path) in str(error)


HEADER, ROWS = "image,patient_id,label,split", ("a.png,P1,benign,train", "b.png,P2,malignant,test")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([HEADER, *ROWS]),
        "\n".join(f"{line},,," for line in (HEADER, *ROWS)),  # Excel's trailing commas
        "\n".join([HEADER, *(f"{row},," for row in ROWS), ",,,,,"]),
        "\r\n".join(line.replace(",", ";") for line in (HEADER, *ROWS)),
        "sep=;\r\n" + "\r\n".join(line.replace(",", ";") for line in (HEADER, *ROWS)),
        '"sep=,"\n' + "\n".join([HEADER, *ROWS]),
        "\n".join(line.replace(",", "\t") for line in (HEADER, *ROWS)),
        "\n".join([HEADER + ",note", ROWS[0] + ",two\vlines", ROWS[1] + ',"a\nb"']),
        "\n".join([HEADER, *ROWS]).replace("malignant", "malignant\v"),
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, study, text):
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode())
    cases = read_manifest(path, study())
    assert [(case.image, case.label, case.split) for case in cases] == [
        ("a.png", (0,), "train"), ("b.png", (1,), "test")
    ]  # fmt: skip
    assert infer_study(path).data.labels == ["benign", "malignant"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04...", "is a spreadsheet (.xlsx"),
        (b"\xd0\xcf\x11\xe0...", "is a spreadsheet (.xlsx, .xls)"),
        (HEADER.encode("utf-16"), "is UTF-16"),
        (HEADER.encode("utf-16-le"), "is UTF-16"),
        (
            f"{HEADER}\na.png,M\u00fcller,benign,train".encode("latin-1"),
            "Line 2 is probably in the encoding of Windows",
        ),
    ],
)
def test_what_a_file_is_instead_is_said_with_the_way_to_save_it(tmp_path, study, content, expected):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    text = refused(path, study())
    assert expected in text and "CSV UTF-8 (comma delimited)" in text and "ller" not in text


def test_one_patient_in_two_unicode_forms_is_one(manifest, study):
    cases = read_manifest(manifest("a,M\u00fcller,benign,train", "b,Mu\u0308ller,benign,train"), study())
    assert cases[0].patient_id == cases[1].patient_id

"""predictions.csv reads back as it was, and a damaged one is refused at its file, row and column."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from medopt.core.errors import DataError
from medopt.core.records import UNKNOWN, Predictions
from medopt.evaluation.predictions_io import read_labels, read_predictions, write_predictions
from medopt.metrics.calibration import UNCALIBRATED, Calibration, probabilities

NAMES = {
    "binary": ["benign", "malignant"],
    "multiclass": ["a", "b, or c", "d"],
    "multilabel": ["a", 'say "b"', "größer"],
}

FITTED = {"float": Calibration("temperature", 1.5), "int8": Calibration("temperature", 0.7)}


def same(one: Predictions, other: Predictions) -> bool:
    columns = [name for name in Predictions.__slots__ if name != "subgroups"]
    groups = list(one.subgroups) == list(other.subgroups)
    groups = groups and all(np.array_equal(one.subgroups[name], other.subgroups[name]) for name in one.subgroups)
    return groups and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


@pytest.fixture
def written(tmp_path, drawn):
    def write(task="binary"):
        outputs = 1 if task == "binary" else 3
        table = drawn(40, outputs, task=task)
        table = replace(table, split=np.where(np.arange(40) < 15, "val", "test"), logits=table.logits / 3)
        tables = [table, replace(table, model="int8", logits=np.float64(np.float32(table.logits)))]
        path = tmp_path / "run" / "predictions.csv"
        write_predictions(
            path,
            tables,
            NAMES[task],
            task,
            FITTED,
        )
        return path, tables

    return write


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_what_is_written_reads_back_to_the_last_bit(written, task):
    path, tables = written(task)
    found = read_predictions(path)
    assert [table.model for table in found] == ["float", "int8"]
    assert all(same(one, other) for one, other in zip(tables, found, strict=True))
    assert found[0].labels.dtype == np.int64 and found[0].logits.dtype == np.float64


def test_columns_are_named_and_probabilities_calibrated(written):
    path, tables = written("multilabel")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = NAMES["multilabel"]
    assert list(rows[0]) == ["model", "split", "case_id", "patient_id", "site"] + [
        f"{kind}_{name}" for kind in ("label", "logit", "probability") for name in names
    ]
    assert len(rows) == 80
    found = [[float(row[f"probability_{name}"]) for name in names] for row in rows[40:]]
    assert np.array_equal(found, probabilities(tables[1].logits, 0.7, "multilabel"))
    assert written("binary")[0].read_text().splitlines()[0].endswith(",site,label,logit,probability")


def test_extreme_logits_survive(tmp_path, drawn):
    table = drawn(4)
    extreme = replace(table, logits=np.array([[1e-308], [-1e300], [0.1 + 0.2], [-0.0]]))
    write_predictions(tmp_path / "p.csv", [extreme], NAMES["binary"], "binary", {"float": UNCALIBRATED})
    (found,) = read_predictions(tmp_path / "p.csv")
    assert found.logits.tobytes() == extreme.logits.tobytes()


def test_no_predictions_are_no_tables(tmp_path):
    write_predictions(tmp_path / "p.csv", [], NAMES["binary"], "binary", {})
    assert read_predictions(tmp_path / "p.csv") == []


def test_parts_of_one_model_become_one_table(tmp_path, drawn):
    table = replace(drawn(10), split=np.array(["val"] * 4 + ["test"] * 6))
    write_predictions(
        tmp_path / "p.csv",
        [table.of_split("val"), table.of_split("test")],
        ["n", "y"],
        "binary",
        {"float": UNCALIBRATED},
    )
    (found,) = read_predictions(tmp_path / "p.csv")
    assert same(found, table)


def test_a_failed_write_leaves_the_old_file(written, drawn):
    path, _ = written()
    before = path.read_bytes()
    damaged = drawn(5)
    damaged.logits[2] = np.nan
    with pytest.raises(DataError, match="not a finite number"):
        write_predictions(path, [drawn(5), damaged], NAMES["binary"], "binary", {"float": UNCALIBRATED})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "logit", "abc", r"row 2, column logit: 'abc' where a finite number was expected \(1 such rows\)"),
        (7, "logit", "nan", r"row 8, column logit: 'nan' where a finite number"),
        (3, "label", "2", r"row 4, column label: '2' where a whole number below 2"),
        (3, "label", "0.5", r"row 4, column label: '0.5' where a whole number"),
        (3, "label", "", r"row 4, column label: '' where a finite number"),
        (80, "split", "holdout", r"row 81, column split: 'holdout' where one of train, val, test"),
        (5, "probability", "1.2", r"row 6, column probability: '1.2' where a probability"),
        (9, "case_id", "case00000", r"row 10, column case_id: repeated; one row for each case of a model"),
        (0, "split", "part", r"row 1: no column split"),
        (0, "logit", "score", r"row 1: no column logit"),
        (0, "site", "split", r"row 1: no column site"),
    ],
)
def test_a_malformed_value_is_refused_at_its_place(written, row, column, value, message):
    path, _ = written()
    rows = list(csv.reader(path.open(newline="")))
    rows[row][rows[0].index(column)] = value
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(str(path))
    assert "patient0" not in str(caught.value) and "case0" not in str(caught.value)


def test_other_damage_is_refused(written, tmp_path):
    with pytest.raises(DataError, match="There is no prediction table"):
        read_predictions(tmp_path / "none.csv")
    path, _ = written()
    whole = path.read_text()
    for damaged, message in [
        (whole[:-30], r"row 81: \d fields where the header has 8. Was the file cut off"),
        ("", "row 1: no column model"),
        (whole.replace("site", "site,site", 1), "the column site is there twice"),
        (whole.replace("float", '"fl', 1), "cannot be read as a CSV table"),
    ]:
        path.write_text(damaged)
        with pytest.raises(DataError, match=message):
            read_predictions(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a CSV table"):
        read_predictions(path)


def test_subgroups_are_written_and_read_back(tmp_path, drawn):
    table = replace(drawn(6), subgroups={"sex": np.array(["F", "", "M"] * 2), "image size": np.array(["64 x 64"] * 6)})
    other = replace(drawn(6), model="int8", subgroups={"scanner": np.array(['Acme "X", 2'] * 6)})
    write_predictions(
        tmp_path / "p.csv", [table, other], NAMES["binary"], "binary", dict.fromkeys(FITTED, UNCALIBRATED)
    )
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert ",site,subgroup_sex,subgroup_image size,subgroup_scanner,label," in header
    first, second = read_predictions(tmp_path / "p.csv")
    assert {name: column.tolist() for name, column in first.subgroups.items()} == {
        "sex": ["F", "", "M"] * 2,
        "image size": ["64 x 64"] * 6,
        "scanner": [""] * 6,
    }
    assert second.subgroups["scanner"].tolist() == ['Acme "X", 2'] * 6
    assert first.where(np.array([0, 2])).subgroups["sex"].tolist() == ["F", "M"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_task_and_labels_are_told_by_the_header(written, task):
    path, _ = written(task)
    names = ["negative", "positive"] if task == "binary" else NAMES[task]
    assert read_labels(path) == (task, names)
    with pytest.raises(DataError, match="There is no prediction table"):
        read_labels(path.parent / "none.csv")


def test_a_label_that_is_not_known_is_an_empty_cell(tmp_path, drawn):
    table = drawn(6, 2, task="multilabel")
    labels = table.labels.copy()
    labels[2, 0] = labels[4, 1] = UNKNOWN
    path = tmp_path / "predictions.csv"
    write_predictions(path, [replace(table, labels=labels)], ["a", "b"], "multilabel", {"float": UNCALIBRATED})
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label_a"] == "" for row in rows] == [False, False, True, False, False, False]
    assert np.array_equal(read_predictions(path)[0].labels, labels)
    path.write_text(path.read_text().replace(",,", ",2,"))
    with pytest.raises(DataError, match="row 4, column label_a"):
        read_predictions(path)

"""Planted wrong labels come first, the page shows them, and the answers go back into the manifest with its card."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import Finished, call

from medopt.core.errors import DataError
from medopt.core.files import file_digest
from medopt.experiments.suspects import find_suspects
from medopt.manifest.card import Card, load_card, write_card
from medopt.manifest.relabel import relabel

OTHER = {"blob": "clear", "clear": "blob"}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def planted(finished: Finished, tmp_path: Path) -> tuple[Path, set[str]]:
    """A run whose manifest and predictions have the wrong label for three test images, one of them twice as sure."""
    folder = Path(shutil.copytree(finished.folder, tmp_path / finished.folder.name))
    table, manifest = rows_of(folder / "predictions.csv"), rows_of(folder / "manifest.csv")
    test = [row for row in table if row["model"] == "float" and row["split"] == "test"]
    right = [row for row in test if (float(row["probability"]) > 0.5) == (row["label"] == "1")]
    chosen = {row["case_id"] for row in sorted(right, key=lambda row: -abs(float(row["logit"])))[:3]}
    for row in table:
        row["label"] = str(1 - int(row["label"])) if row["case_id"] in chosen else row["label"]
    for row in manifest:
        row["label"] = OTHER[row["label"]] if row["case_id"] in chosen else row["label"]
    write_rows(folder / "predictions.csv", table)
    write_rows(folder / "manifest.csv", manifest)
    return folder, chosen


def test_planted_wrong_labels_rank_on_top(planted: tuple[Path, set[str]], finished: Finished) -> None:
    folder, chosen = planted
    found = find_suspects([folder]).suspects
    assert {one.case_id for one in found.suspects[:3]} == chosen
    assert [one.rank for one in found.suspects] == list(range(1, len(found.suspects) + 1))
    assert all(OTHER[one.given] == one.suggested and one.split in ("val", "test") for one in found.suspects)
    judged = {row["case_id"] for row in rows_of(folder / "predictions.csv")}
    assert found.judged == len(judged) and found.images == len(rows_of(folder / "manifest.csv"))
    assert "were trained on by every run: medopt run --folds judges them" in found.summary
    with pytest.raises(DataError, match="other labels"):
        find_suspects([folder, finished.folder])


def test_page_and_answers_by_the_command_line(
    planted: tuple[Path, set[str]], finished: Finished, tmp_path: Path
) -> None:
    folder, chosen = planted
    done = call("manifest", "suspects", folder, "--data", finished.clinic.data, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    assert {one["case_id"] for one in done.summary["suspects"][:3]} == chosen
    page = (tmp_path / "out" / "suspects.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(done.summary["suspects"])
    assert "<script" not in page and not re.search(r"(src|href)\s*=\s*[\"'](?!data:image/png;base64,|#)", page)
    assert all(case in page for case in chosen)
    answers = rows_of(tmp_path / "out" / "suspects.csv")
    assert [row["answer"] for row in answers] == [""] * len(answers)
    answers[0]["answer"], answers[1]["answer"], answers[2]["answer"] = answers[0]["suggested"], "keep", "remove"
    write_rows(tmp_path / "answers.csv", answers)
    manifest = tmp_path / "manifest.csv"
    shutil.copy(folder / "manifest.csv", manifest)
    write_card(
        manifest.with_suffix(".card.yaml"),
        Card(
            title="t", source="s", licence="l", citation="c", labels={"blob": "a blob", "clear": "none"},
            notes=["known before"], manifest_sha256=file_digest(manifest),
        ),
    )  # fmt: skip
    out = tmp_path / "new" / "relabelled.csv"
    out.parent.mkdir()
    done = call("manifest", "relabel", manifest, tmp_path / "answers.csv", "--out", out, "--by", "A. Reader", "--json")
    assert done.code == 0, done.stderr
    assert done.summary["removed"] == done.summary["kept"] == 1
    before, after = rows_of(manifest), {row["image"]: row for row in rows_of(out)}
    assert len(after) == len(before) - 1 and answers[2]["image"] not in after
    for row in before:
        if row["image"] == answers[0]["image"]:
            assert after[row["image"]] == row | {"label": answers[0]["suggested"]}
        elif row["image"] in after:
            assert after[row["image"]] == row
    card = load_card(out)  # its digest is that of the new manifest
    assert card is not None and card.notes[0] == "known before" and (card.title, card.licence) == ("t", "l")
    said = f"1 label changed (1 {answers[0]['given']} to {answers[0]['suggested']})"
    assert (
        said in card.notes[1]
        and "by A. Reader" in card.notes[1]
        and "1 image removed, 1 label confirmed" in card.notes[1]
    )
    assert yaml.safe_load(manifest.with_suffix(".card.yaml").read_text())["notes"] == ["known before"]


MANIFEST = "image,patient_id,label,split\na.png,P1,0,train\nb.png,P2,1,train\nc.png,P3,1,test\n"
HEAD = "image,column,given,suggested,answer,remark\n"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("x.png,label,1,0,0,\n", "row 2: the image is not in the manifest"),
        ("a.png,label,1,0,0,\n", "row 2: the manifest says '0' where '1' was judged"),
        ("a.png,label,0,1,zero,\n", "the answer 'zero' is not known"),
        ("a.png,label,0,1,1,\na.png,label,0,1,keep,\n", "row 3: another answer than in row 2"),
        ("a.png,nodule,0,1,1,\n", "no column nodule"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path: Path, answers: str, said: str) -> None:
    manifest, table = tmp_path / "m.csv", tmp_path / "a.csv"
    manifest.write_text(MANIFEST)
    table.write_text(HEAD + answers)
    with pytest.raises(DataError, match=re.escape(said)) as refused:
        relabel(manifest, table, tmp_path / "new.csv", "a reader")
    assert "P1" not in str(refused.value) and not (tmp_path / "new.csv").exists()


def test_the_manifests_own_words_are_written_where_the_study_has_other_names(tmp_path: Path) -> None:
    manifest, table, rename = tmp_path / "m.csv", tmp_path / "a.csv", {"0": "clear", "1": "nodule"}
    manifest.write_text(MANIFEST)
    table.write_text(HEAD + "a.png,label,clear,nodule,nodule,\nb.png,label,nodule,clear,,\n")
    done = relabel(manifest, table, tmp_path / "new.csv", "a reader", rename)
    assert (tmp_path / "new.csv").read_text() == MANIFEST.replace("P1,0", "P1,1")
    assert (dict(done.changed), done.unanswered) == ({("label", "0", "1"): 1}, 1)
    with pytest.raises(DataError, match="is the manifest itself"):
        relabel(manifest, table, manifest, "a reader", rename)

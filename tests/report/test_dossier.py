"""The dossier: each sentence a recorded fact, and what no run records is named as open."""

from __future__ import annotations

import re
from pathlib import Path

from clinic_fixtures import Finished, call

from medopt.report.dossier import HEADINGS, OPEN, dossier_sections
from medopt.report.run_records import read_run


def test_every_heading_has_what_is_known_and_what_is_open(finished: Finished) -> None:
    sections = dossier_sections(read_run(finished.folder))
    assert [one.title for one in sections] == list(HEADINGS) and len(HEADINGS) == 9
    assert all(one.open for one in sections)
    assert "the intended purpose, the patients and the users" in sections[0].open  # the clinic's study states none
    assert [one.number for one in sections if not one.facts] == [5, 7, 8]
    assert set(OPEN) == set(range(1, 10))


def test_its_figures_are_those_of_the_run(finished: Finished) -> None:
    told = " ".join(fact for one in dossier_sections(read_run(finished.folder)) for fact in one.facts)
    test = finished.metrics["test"]["int8"]
    assert f"AUC {test['auc']['value']:.3f} (" in told
    assert "Data, test: 18 images of 9 patients at 3 sites" in told
    assert finished.folder.name in told


def test_a_stated_use_is_a_fact_and_no_longer_open(finished: Finished) -> None:
    run = read_run(finished.folder)
    study = run.study.model_copy(update={"intended_use": "Adults in the emergency room."})
    object.__setattr__(run, "study", study)
    first = dossier_sections(run)[0]
    assert any("Adults in the emergency room." in fact for fact in first.facts)
    assert "the intended purpose, the patients and the users" not in first.open


def test_the_page_has_no_script_and_no_address(finished: Finished, tmp_path: Path) -> None:
    done = call("dossier", finished.folder, "--out", tmp_path / "dossier.html", "--json")
    assert done.code == 0, done.stderr
    page = (tmp_path / "dossier.html").read_text()
    assert "<script" not in page and "it does not state conformity" in page
    assert not re.search(r"(?:src|href)=\"https?:", page)
    assert done.summary["facts"] > 20 and done.summary["open"] >= 15
    assert not finished.clinic.identifiers & set(re.findall(r"[\w^.]+", page))


def test_the_promises_stand_as_a_table_under_the_metrics(finished: Finished, tmp_path: Path) -> None:
    run = read_run(finished.folder)
    table = run.metrics.guarantee
    assert table is not None and [one.table for one in dossier_sections(run) if one.table] == [table]
    assert [row[0] for row in table.cells][:2] == ["all", "site harbour"]
    assert table.cells[1][3] == "not known (3 patients)"
    assert call("dossier", finished.folder, "--out", tmp_path / "dossier.html").code == 0
    page = (tmp_path / "dossier.html").read_text()
    assert page.count("not known (3 patients)") == 6 and table.note in page

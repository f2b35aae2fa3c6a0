"""A study of several series: the series that training took is answered; if none is, the report says why."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from peers import radiograph
from pydicom import dcmread
from report_groups import measurement_groups, source_uids

from medopt.config import SeriesRules
from medopt.pacs import study_inference
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import StudyRequest, StudyResponse

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture(scope="module")
def inferences(release: Path) -> dict[str, StudyInference]:
    """Without rules, with rules for one series, and without results for declined studies."""
    rules = SeriesRules.model_validate({"description": ["^wanted"]})
    return {
        "none": StudyInference(release, "int8", None, ResultSettings()),
        "some": StudyInference(release, "int8", rules, ResultSettings()),
        "quiet": StudyInference(release, "int8", rules, ResultSettings(declined=False)),
    }


def study(folder: Path, *descriptions: str) -> Path:
    """One image in a series of each description."""
    for number, description in enumerate(descriptions, start=1):
        path = radiograph(folder / f"{number}.dcm", number=number, series_uid=f"1.2.3.{number}")
        image = dcmread(path)
        image.SeriesDescription, image.SeriesNumber = description, number
        image.save_as(path)
    return folder


def answer(inference: StudyInference, folder: Path) -> StudyResponse:
    digests = {path.name: path.name for path in folder.iterdir()}
    return inference.answer(StudyRequest(folder=folder, digests=digests, previous={}, now=NOW))


def sources(response: StudyResponse) -> list[str]:
    """The images that the report has a group for."""
    groups = measurement_groups(response.objects[0].content)
    return list(dict.fromkeys(uid[-1] for group in groups for uid in source_uids(group)))


def test_a_warm_up_runs_the_engine_and_writes_a_report_to_nobody(
    inferences: dict[str, StudyInference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its failures are hidden, since they show with the first study: so that it does its work is looked at here."""
    inference, reports = next(iter(inferences.values())), []
    write = study_inference.study_reports

    def kept(*arguments: Any) -> Any:
        reports.append(write(*arguments))
        return reports[-1]

    monkeypatch.setattr(study_inference, "study_reports", kept)
    inference.warm_up()
    assert len(reports) == 1 and [one.result_type for one in reports[0]] == ["report", "text"]


def test_two_views_in_two_series_each_have_an_answer(inferences: dict[str, StudyInference], tmp_path: Path) -> None:
    response = answer(inferences["none"], study(tmp_path, "PA", "lateral"))
    assert (len(response.decisions), sorted(sources(response))) == (2, ["1", "2"])


def test_rules_choose_one_of_several(inferences: dict[str, StudyInference], tmp_path: Path) -> None:
    response = answer(inferences["some"], study(tmp_path, "PA", "wanted PA", "QUITTENBAUM"))
    assert (len(response.decisions), sources(response)) == (1, ["2"])


@pytest.mark.parametrize(
    ("descriptions", "counted"),
    [(("wanted 1", "QUITTENBAUM", "wanted 2"), "2 left, 1 description"), (("PA", "QUITTENBAUM"), "2 description")],
)
def test_what_the_rules_do_not_decide_is_undetermined(
    inferences: dict[str, StudyInference], tmp_path: Path, descriptions: tuple[str, ...], counted: str
) -> None:
    response = answer(inferences["some"], study(tmp_path, *descriptions))
    assert (response.ending, response.decisions) == ("declined", ("declined",))
    assert response.reason.endswith(f"series of this study ({counted})")
    assert "QUITTENBAUM" not in response.reason
    assert len(sources(response)) == len(descriptions)
    report = response.objects[0].content
    assert b"The rules do not leave one series of this study" in report
    (text,) = (each.content for each in response.objects if each.result_type == "text")
    assert b"Undetermined. Declined: The rules do not leave" in text
    assert answer(inferences["quiet"], tmp_path).objects == ()

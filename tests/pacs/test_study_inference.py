"""A study of several series: what is answered is what training took, and where nothing is, the report says why."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from highdicom import sr
from peers import radiograph
from pydicom import dcmread

from medopt.config import SeriesRules
from medopt.pacs.settings import Results
from medopt.pacs.study_inference import Answered, Answering

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture(scope="module")
def opened(release: Path) -> dict[str, Answering]:
    """With no rules, with rules for one series, and with results for what is answered alone."""
    rules = SeriesRules.model_validate({"description": ["^wanted"]})
    return {
        "none": Answering(release, "int8", None, Results()),
        "some": Answering(release, "int8", rules, Results()),
        "quiet": Answering(release, "int8", rules, Results(declined=False)),
    }


def study(folder: Path, *descriptions: str) -> Path:
    """One image in a series of each description."""
    for number, description in enumerate(descriptions, start=1):
        path = radiograph(folder / f"{number}.dcm", number=number, series_uid=f"1.2.3.{number}")
        image = dcmread(path)
        image.SeriesDescription, image.SeriesNumber = description, number
        image.save_as(path)
    return folder


def answered(answering: Answering, folder: Path) -> Answered:
    return answering.study(folder, {path.name: path.name for path in folder.iterdir()}, {}, NOW)


def sources(found: Answered) -> list[str]:
    """The images that the report has a group for."""
    groups = sr.srread(io.BytesIO(found.made[0].content)).content.get_image_measurement_groups()
    return [str(image.referenced_sop_instance_uid)[-1] for group in groups for image in group.source_images]


def test_two_views_in_two_series_have_an_answer_each(opened: dict[str, Answering], tmp_path: Path) -> None:
    found = answered(opened["none"], study(tmp_path, "PA", "lateral"))
    assert (len(found.decisions), sorted(sources(found))) == (2, ["1", "2"])


def test_rules_choose_one_of_several(opened: dict[str, Answering], tmp_path: Path) -> None:
    found = answered(opened["some"], study(tmp_path, "PA", "wanted PA", "QUITTENBAUM"))
    assert (len(found.decisions), sources(found)) == (1, ["2"])


@pytest.mark.parametrize(
    ("descriptions", "counted"),
    [(("wanted 1", "QUITTENBAUM", "wanted 2"), "2 left, 1 description"), (("PA", "QUITTENBAUM"), "2 description")],
)
def test_what_the_rules_do_not_decide_is_undetermined(
    opened: dict[str, Answering], tmp_path: Path, descriptions: tuple[str, ...], counted: str
) -> None:
    found = answered(opened["some"], study(tmp_path, *descriptions))
    assert (found.ending, found.decisions) == ("declined", ("declined",))
    assert found.reason.endswith(f"series of this study ({counted})")
    assert "QUITTENBAUM" not in found.reason
    assert len(sources(found)) == len(descriptions)
    report = found.made[0].content
    assert b"The rules do not leave one series of this study" in report
    (text,) = (one.content for one in found.made if one.kind == "text")
    assert b"Undetermined. Declined: The rules do not leave" in text
    assert answered(opened["quiet"], tmp_path).made == ()

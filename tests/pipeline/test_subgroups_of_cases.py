from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medopt.config import Prepare
from medopt.core.records import Case
from medopt.data.cache import PreparedCache
from medopt.pipeline.predict import subgroups
from medopt.training.job import PreparedSplit
from medopt.transforms.prepare import PrepareChain


def prepared(tmp_path: Path, *groups: dict[str, str], sizes: tuple[int, ...] = (20,)) -> PreparedSplit:
    """A case a dictionary of groups; images of the given sides in turn."""
    cases = []
    for index, given in enumerate(groups):
        side, name = sizes[index % len(sizes)], f"{index}.png"
        noise = np.random.default_rng(index).integers(0, 256, (side, side + 4))
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / name)
        cases.append(Case(name, name, name, (0,), "test", groups=tuple(given.items())))
    chain = PrepareChain(Prepare(size=[16, 16]))
    return PreparedSplit(cases, PreparedCache(tmp_path / "cache", chain).fill(cases, tmp_path))


def test_sex_and_age_are_told_in_common_words(tmp_path: Path) -> None:
    part = prepared(tmp_path, {"sex": "F", "age": "17"}, {"sex": "male", "age": "066Y"}, {"sex": "?", "age": "old"})
    found = subgroups(part)
    assert found["sex"].tolist() == ["female", "male", ""]
    assert found["age"].tolist() == ["below 18", "65 and older", ""]


@pytest.mark.parametrize(
    ("age", "band"), [("0", "below 18"), ("18", "18 to 39"), ("40", "40 to 64"), ("64.9", "40 to 64")]
)
def test_a_band_begins_with_its_first_year(tmp_path: Path, age: str, band: str) -> None:
    assert subgroups(prepared(tmp_path, {"age": age}, {"age": "90"}))["age"].tolist() == [band, "65 and older"]


def test_image_size_is_the_shorter_side_of_the_scan_not_of_the_prepared_image(tmp_path: Path) -> None:
    found = subgroups(prepared(tmp_path, {}, {}, sizes=(100, 130)))
    assert found["image size"].tolist() == ["below 128 px", "128 to 255 px"]


def test_a_variable_without_two_groups_is_left_out(tmp_path: Path) -> None:
    assert subgroups(prepared(tmp_path, {"sex": "F", "ward": "3"}, {"sex": "F"})) == {}


def test_columns_of_the_manifest_are_groups_of_their_own(tmp_path: Path) -> None:
    assert subgroups(prepared(tmp_path, {"ward": "3"}, {"ward": "4"}))["ward"].tolist() == ["3", "4"]

"""The page of thumbnails: pairs side by side in red, and no identifier on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pictures import write_set
from PIL import Image

from medopt.config import Study
from medopt.figures.contact_sheet import RED, draw_sheet
from medopt.manifest.duplicates import DuplicatePair
from medopt.manifest.image_facts import read_facts


@pytest.fixture
def study(tiny_study: Any) -> Study:
    return tiny_study(data={"labels": ["benign", "malignant"]})


def red_pixels(path) -> int:
    page = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(RED[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(page - wanted).max(-1) < 12).sum())


def test_what_is_wrong_is_marked_in_red(tmp_path, study):
    cases = write_set(tmp_path)
    thumbnails = {row: one.thumbnail for row, one in enumerate(read_facts(cases, tmp_path))}
    draw_sheet(tmp_path / "sound.png", cases, thumbnails, study)
    assert red_pixels(tmp_path / "sound.png") == 0
    del thumbnails[4]
    draw_sheet(tmp_path / "wrong.png", cases, thumbnails, study, [DuplicatePair(0, 20, 0.995)], {4: "unreadable"})
    assert red_pixels(tmp_path / "wrong.png") > 1000


def test_a_sheet_of_volumes_and_of_nothing(tmp_path, study):
    cases = write_set(tmp_path)
    volume = np.random.default_rng(0).uniform(size=(16, 16, 16)).astype(np.float32)
    draw_sheet(tmp_path / "volume.png", cases, {0: volume}, study)
    draw_sheet(tmp_path / "nothing.png", cases, {}, study)
    for name in ("volume", "nothing"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

"""A run refuses the same picture in two splits or under two labels, and carries what its study accepts of that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clinic import STUDY
from clinic_fixtures import Finished, call
from pictures import noisy, picture, write_manifest, write_set
from PIL import Image

from medopt.core.errors import DataError
from medopt.manifest.findings import ACCEPTED
from medopt.pipeline.stages.prepare import refuse_duplicates


def study_of(folder: Path, *accepted: str) -> Path:
    """A study of 24 pictures of which a test image is a near-duplicate of a training image."""
    cases = write_set(folder)
    Image.fromarray(noisy(picture(0))).save(folder / "020.png")
    write_manifest(folder / "m.csv", cases)
    data = {"manifest": "m.csv", "labels": ["benign", "malignant"], "accept": list(accepted)}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"name": "copies", "data": data}))
    return path


def test_a_run_on_copies_is_refused_before_it_trains(tmp_path: Path) -> None:
    done = call("run", study_of(tmp_path / "data"), "--data", tmp_path / "data", "--runs", tmp_path / "runs")
    done.refused(3, "DataError: The data of study copies are refused. near_duplicates: 1 of 6 test, 1 of 12 train")
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.fixture
def prepared(tmp_path: Path, tiny_study: Any, tiny_set: Any) -> Any:
    """prepared(accept): a run's check of duplicates, on sets of which one test image is a training image."""

    def make(*accept: str) -> list[str]:
        study = tiny_study(data={"accept": list(accept)})
        sets = {
            split: tiny_set(tmp_path, study, 12, split, seed) for seed, split in enumerate(("train", "val", "test"))
        }
        np.save(sets["test"].files[1], np.load(sets["train"].files[0]))
        sets["test"].cases[1] = replace(sets["test"].cases[1], label=(1,))
        return refuse_duplicates(study, sets)

    return make


def test_what_the_study_accepts_comes_back_as_notes(prepared: Any) -> None:
    with pytest.raises(DataError, match=r"exact_duplicates: 1 of 12 test, 1 of 12 train .* label_conflict: "):
        prepared()
    with pytest.raises(DataError, match=r"are refused\. label_conflict: "):
        prepared("exact_duplicates")
    notes = prepared("exact_duplicates", "label_conflict")
    assert [note.split(":")[0] for note in notes] == [f"exact_duplicates, {ACCEPTED}", f"label_conflict, {ACCEPTED}"]


def test_a_finished_run_says_what_was_accepted(finished: Finished) -> None:
    """Nothing but how bright the drawn blobs are; metrics and release say the same."""
    told = json.loads((finished.release / "release.json").read_text())["provenance"]["data_notes"]
    assert finished.metrics["data_notes"] == told
    assert [note.partition(":")[0] for note in told] == ["shortcuts"]


def test_a_copy_of_one_image_of_a_case_is_refused(tmp_path: Path, tiny_study: Any, tiny_set: Any) -> None:
    """The second image of a test case is that of a training case; the first ones and the masks differ, or are zeros."""
    study = tiny_study(prepare={"channels": ["t1", "t2"], "missing_channel": "zeros"})
    sets = {split: tiny_set(tmp_path, study, 4, split, seed) for seed, split in enumerate(("train", "val", "test"))}
    random = np.random.default_rng(0)
    for part in sets.values():
        for file in part.files:
            image = random.random((4, 16, 16)).astype(np.float32)
            image[0], image[2], image[3] = 0, 0, 1
            np.save(file, image)
    assert refuse_duplicates(study, sets) == []
    copied = np.load(sets["test"].files[1])
    copied[0], copied[1], copied[2] = random.random((16, 16)), np.load(sets["train"].files[0])[1], 1
    np.save(sets["test"].files[1], copied)
    with pytest.raises(DataError, match="exact_duplicates: 1 of 4 test, 1 of 4 train"):
        refuse_duplicates(study, sets)

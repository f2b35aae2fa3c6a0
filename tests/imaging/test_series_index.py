"""What a folder of a scanner's export holds, and one of its series read by UID."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from real_data import real

from medopt.core.errors import DataError
from medopt.imaging import read_scan
from medopt.imaging.series_index import index_folder


@pytest.fixture(scope="module")
def study() -> Path:
    """A real MR study, each of its five series in a folder."""
    return real("dicom/mr_study")


@pytest.fixture(scope="module")
def flat(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five series of the study in one folder under meaningless names, as a PACS exports them."""
    folder = tmp_path_factory.mktemp("export")
    for number, path in enumerate(sorted(p for p in study.rglob("*") if p.is_file())):
        shutil.copy(path, folder / f"I{number:04d}")
    (folder / "README.txt").write_text("written by a CD burner")
    return folder


def test_series_are_told_apart_by_their_headers(flat: Path) -> None:
    index = index_folder(flat)
    found = {series.description: (series.frames, series.orientation, series.contrast) for series in index.series}
    assert found == {
        "HippoCrop": (32, "axial", False),
        "T1post": (22, "axial", True),
        "T1pre_reg": (22, "axial", False),
        "FLAIR_reg": (22, "axial", False),
        "T2_reg": (22, "axial", False),
    }
    assert ("README.txt", "not DICOM") in [(path.name, reason) for path, reason in index.other_files]


def test_one_series_of_several_is_read_by_uid_and_is_the_same_as_from_its_own_folder(study: Path, flat: Path) -> None:
    for series in index_folder(study).series:
        alone, picked = read_scan(series.folder), read_scan(f"{flat}#{series.uid}")
        np.testing.assert_array_equal(alone.array, picked.array)
        np.testing.assert_allclose(alone.affine, picked.affine)


def test_a_series_that_is_not_there_is_refused(flat: Path) -> None:
    with pytest.raises(DataError, match="does not hold the series"):
        read_scan(f"{flat}#1.2.3")


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="holds no DICOM image"):
        index_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        index_folder(tmp_path / "a.txt")

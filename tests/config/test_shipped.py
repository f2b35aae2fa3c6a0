"""Studies by name: in the folder pipelines/ here, or those that come with medopt."""

from __future__ import annotations

from pathlib import Path

import pytest

from medopt.config import shipped
from medopt.config.shipped import shipped_manifests, shipped_names, study_path
from medopt.config.study_file import find_manifest, load_study
from medopt.core.errors import ConfigError


def test_a_path_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("a.yaml"), Path("folder/busi"), tmp_path / "busi.yaml"):
        assert study_path(path) == path
    Path("phantom").touch()
    assert study_path(Path("phantom")) == Path("phantom")


def test_a_name_means_ones_own_study_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = study_path(Path("busi"))
    assert load_study(found).name == "busi" and found.is_absolute()
    Path("pipelines").mkdir()
    Path("pipelines/busi.yaml").touch()
    assert study_path(Path("busi")) == Path("pipelines/busi.yaml")


def test_an_unknown_name_is_refused_with_the_nearest_and_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Did you mean phantom\? Known by name: .*hippocampus"):
        study_path(Path("fantom"))
    with pytest.raises(ConfigError, match=r"no study of that name\. Known by name: "):
        study_path(Path("zzz"))


def test_an_installation_without_a_clone_has_them_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("pipelines", "data_manifests"):
        (tmp_path / "_shipped" / folder).mkdir(parents=True)
    (tmp_path / "_shipped" / "pipelines" / "lesions.yaml").write_text(
        "name: lesions\nquestion: '?'\ndata: {manifest: elsewhere/lesions.csv, labels: [benign, malignant]}\n"
        "prepare: {size: [8, 8]}\n"
    )
    (tmp_path / "_shipped" / "data_manifests" / "lesions.csv").touch()
    monkeypatch.setattr(shipped, "_PLACES", (tmp_path / "_shipped", tmp_path / "clone"))
    monkeypatch.chdir(tmp_path)
    file = study_path(Path("lesions"))
    assert (shipped_names(), file.parent.parent.name) == (["lesions"], "_shipped")
    manifest = find_manifest(load_study(file), file, tmp_path / "data")
    assert shipped_manifests() is not None and manifest.parent == shipped_manifests()

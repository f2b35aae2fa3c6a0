"""The wheel holds what a clone keeps at its root, and is found by an installation that has no clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from real_data import REPO

pytestmark = pytest.mark.system

LOOK = """
import json, medopt
from importlib.resources import files
from medopt.config.study_file import load_study
shipped = files("medopt") / "_shipped"
manifests = {}
for path in (shipped / "pipelines").iterdir():
    study = load_study(path)
    manifests[study.name] = (path.parent / study.data.manifest).is_file()
print(json.dumps([medopt.__file__, manifests]))
"""


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy, so that nothing is left in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    clone.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPO / name, clone)
    for name in ("medopt", "pipelines", "data_manifests"):
        shutil.copytree(REPO / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, clone)
    (path,) = folder.glob("*.whl")
    return path


def test_studies_manifests_and_licence_are_in_the_wheel(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    expected = {path.relative_to(REPO) for path in (REPO / "pipelines").glob("*.yaml")}
    expected |= {path.relative_to(REPO) for path in (REPO / "data_manifests").iterdir() if path.suffix != ".py"}
    expected = {path for path in expected if path.suffix in (".yaml", ".csv")}
    shipped = {Path(name).relative_to("medopt/_shipped") for name in names if name.startswith("medopt/_shipped/")}
    assert shipped == expected and len(expected) >= 13
    assert {Path(name).name for name in names if ".dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert {name.partition("/")[0] for name in names} == {"medopt", wheel.name.partition("-py3")[0] + ".dist-info"}
    assert "medopt/py.typed" in names
    sources = {path.relative_to(REPO).as_posix() for path in (REPO / "medopt").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_an_installation_without_a_clone_finds_them(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, manifests = json.loads(done.stdout)
    assert Path(place).is_relative_to(tmp_path / "site")
    # The drawn study's manifest is drawn with its images.
    assert manifests == {path.stem: path.stem != "phantom" for path in (REPO / "pipelines").glob("*.yaml")}

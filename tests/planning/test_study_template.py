from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from clinic_fixtures import MEDOPT, Clinic, call, environment

from medopt.config.study_file import load_study


def test_the_steps_of_a_new_study_lead_to_a_study_file(clinic: Clinic, tmp_path: Path) -> None:
    """`make manifest plan`, as the README of the new folder says; git keeps neither scans nor the table of patients."""
    folder = tmp_path / "my-study"
    done = call("init", folder)
    assert done.code == 0 and "make manifest" in done.stderr
    shutil.rmtree(folder / "scans")
    shutil.copytree(clinic.data / "scans", folder / "scans")
    lines = ["file,label", *(f"{row['image']},{row['label']}" for row in clinic.rows())]
    (folder / "labels.csv").write_text("\n".join(line.removeprefix("scans/") for line in lines))
    path = environment()["PATH"]
    made = subprocess.run(
        ["make", "manifest", "plan"], cwd=folder, capture_output=True, text=True, check=False,
        env=environment(PATH=f"{Path(MEDOPT).parent}:{path}"),
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    study = load_study(folder / "study.yaml")
    assert study.name == "my-study" and set(study.data.labels) == {"clear", "blob"}
    assert (folder / "sheet.png").is_file()
    again = subprocess.run(["make", "plan"], cwd=folder, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "study.yaml is there already" in again.stdout
    ignored = (folder / ".gitignore").read_text().split()
    assert {"scans/", "labels.csv", "runs/"} <= set(ignored)
    assert "medopt compare runs/my-study/*" in (folder / "README.md").read_text()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "README.md").write_text("ours")
    call("init", tmp_path / "study").refused(2, "there already, and not replaced")
    assert (tmp_path / "study" / "README.md").read_text() == "ours"
    assert not (tmp_path / "study" / "Makefile").exists()


@pytest.mark.parametrize("name", ["My Study", "-x", "a" * 64])
def test_a_name_that_no_study_can_have_is_refused(name: str, tmp_path: Path) -> None:
    call("init", tmp_path / "new", f"--name={name}").refused(2, "cannot name a study")
    assert not (tmp_path / "new").exists()

"""What RUN and RELEASE take, and where a study's images are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from clinic_fixtures import Finished, call

from medopt.cli.places import release_folder, require_scans, run_folder, study_data, with_first_image
from medopt.config import Study
from medopt.core.errors import DataError, ReleaseError

OLD, NEW, UNFINISHED = "20260101-120000-aaaaaaaa", "20260301-120000-bbbbbbbb", "20260401-120000-cccccccc"


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    """Two evaluated runs, both with a release, a run that is not finished, and a group of runs."""
    folder = tmp_path / "runs" / "lesions"
    for name in (OLD, NEW, UNFINISHED, "fleet-dddddddd"):
        (folder / name / "release").mkdir(parents=True)
    for name in (OLD, NEW, UNFINISHED):
        (folder / name / "study.yaml").touch()
    for name in (OLD, NEW, "fleet-dddddddd"):
        (folder / name / "metrics.json").touch()
    for name in (OLD, NEW):
        (folder / name / "release" / "release.json").touch()
    return folder


def test_a_study_a_run_and_a_release_lead_to_the_same(study_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = study_folder / NEW
    for given in (run, run / "release"):
        assert (run_folder(given), release_folder(given)) == (run, run / "release")
    assert capfd.readouterr().err == ""
    assert (run_folder(study_folder), release_folder(study_folder)) == (run, run / "release")
    assert capfd.readouterr().err.splitlines() == [
        f"the newest run of {study_folder}: {run}",
        f"the release of the newest run of {study_folder}: {run / 'release'}",
    ]


def test_a_release_that_was_copied_or_renamed_is_itself(study_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "in-service"
    copy.mkdir()
    (copy / "SHA256SUMS").touch()
    assert release_folder(copy) == copy
    assert run_folder(copy) == copy  # no run lies above it: whoever reads it says what is missing


def test_the_newest_run_without_a_release_is_refused_and_no_older_one_taken(study_folder: Path) -> None:
    (study_folder / NEW / "release" / "release.json").unlink()
    with pytest.raises(ReleaseError, match=f"The run .*{NEW} has no release: .* a verdict did not pass its model"):
        release_folder(study_folder)
    with pytest.raises(ReleaseError, match=f"The run .*{UNFINISHED} has no release: it did not finish"):
        release_folder(study_folder / UNFINISHED)


def test_what_is_not_there_is_refused_with_the_nearest_name(study_folder: Path) -> None:
    with pytest.raises(ReleaseError, match=r"There is no release .*lesion\. Did you mean .*runs/lesions\?"):
        release_folder(study_folder.with_name("lesion"))
    with pytest.raises(DataError, match=r"There is no run folder or prediction table .*nowhere\.$"):
        run_folder(study_folder / "nowhere")
    with pytest.raises(ReleaseError, match=r"is not a release: it holds neither release.json nor runs"):
        release_folder(study_folder.parent)
    require_scans([study_folder, Path(f"{study_folder}#1.2.3")])
    with pytest.raises(DataError, match=r"There is no file or folder .*nowhere\.dcm"):
        require_scans([study_folder / "nowhere.dcm"])


def test_verify_takes_a_studys_folder(finished: Finished) -> None:
    done = call("verify", finished.folder.parent, "--json")
    assert done.code == 0, done.stderr
    assert Path(done.summary["release"]) == finished.release
    assert f"the release of the newest run of {finished.folder.parent}" in done.stderr
    assert "the newest run" not in call("verify", finished.folder.parent, "-q").stderr


def study(manifest: str, root: str = ".") -> Study:
    data = {"manifest": manifest, "root": root, "labels": ["no", "yes"]}
    return Study.model_validate({"name": "s", "question": "?", "data": data, "prepare": {"size": [32, 32]}})


def test_images_beside_the_manifest_are_taken_where_medopt_data_lacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours / "scans", theirs / "scans"):
        folder.mkdir(parents=True)
    (ours / "m.csv").write_text("image,label\nscans/1.png,no\n")
    (ours / "scans" / "1.png").touch()
    monkeypatch.setenv("MEDOPT_DATA", str(theirs))
    wanted, file = study("m.csv"), ours / "study.yaml"
    assert study_data(wanted, file, None) == ours
    assert study_data(wanted, file, theirs) == theirs  # what --data says is obeyed
    (theirs / "scans" / "1.png").touch()
    assert study_data(wanted, file, None) == theirs
    assert with_first_image(ours / "m.csv", [tmp_path, theirs, ours]) == theirs
    assert with_first_image(tmp_path / "none.csv", [ours]) is None


def test_a_manifest_in_the_studys_root_is_beside_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data" / "phantom"
    root.mkdir(parents=True)
    (root / "manifest.csv").write_text("image,label\n1.dcm,no\n")
    (root / "1.dcm").touch()
    monkeypatch.setenv("MEDOPT_DATA", str(tmp_path / "nowhere"))
    wanted = study(str(root / "manifest.csv"), root="phantom")
    assert study_data(wanted, tmp_path / "study.yaml", None) == tmp_path / "data"

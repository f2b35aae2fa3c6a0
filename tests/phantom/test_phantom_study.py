"""Who is in the study, and that its files are whole, the same every time, and drawn once."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from medopt.core.errors import ConfigError
from medopt.core.files import file_digest
from medopt.core.reporter import SilentReporter
from medopt.phantom import draw_study, study

PATIENTS = 24


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    assert draw_study(folder, patients=PATIENTS, seed=5, workers=1) == folder / "manifest.csv"
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


class Counting(SilentReporter):
    """Counts how many images a call says it draws."""

    def __init__(self) -> None:
        self.drawn = 0

    def progress(self, total: int, what: str) -> Callable[..., None]:
        self.drawn += total
        return lambda n=1, **fields: None


def test_manifest_has_the_agreed_columns_and_names_every_file(drawn: Path) -> None:
    found = rows(drawn)
    assert tuple(found[0]) == ("image", "patient_id", "study_uid", "series_uid", "site", "age", "sex", "label", "split")
    assert sorted(row["image"] for row in found) == sorted(
        str(path.relative_to(drawn)) for path in drawn.rglob("*.dcm")
    )
    assert {row["label"] for row in found} == {"no_nodule", "nodule"}
    assert len({row["study_uid"] for row in found} | {row["series_uid"] for row in found}) == 2 * len(found)


def test_same_seed_same_bytes_with_any_number_of_workers(drawn: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(drawn, tmp_path / "copy")
    for row in rows(drawn)[::4]:
        (folder / row["image"]).unlink()
    draw_study(folder, patients=PATIENTS, seed=5, workers=2)
    assert digests(folder) == digests(drawn)


def test_second_call_draws_nothing(drawn: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*") if path.is_file()}
    reporter = Counting()
    draw_study(drawn, patients=PATIENTS, seed=5, reporter=reporter)
    assert reporter.drawn == 0
    assert before == {path: path.stat().st_mtime_ns for path in drawn.rglob("*") if path.is_file()}


def test_a_lost_image_alone_is_drawn_again(drawn: Path) -> None:
    before, lost = digests(drawn), drawn / rows(drawn)[3]["image"]
    lost.unlink()
    reporter = Counting()
    draw_study(drawn, patients=PATIENTS, seed=5, reporter=reporter, workers=1)
    assert reporter.drawn == 1
    assert digests(drawn) == before


def test_interrupted_study_has_no_manifest_and_is_gone_on_with(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = study._draw, []

    def draw_three(folder: Path, shot: study.Shot, seed: int) -> Path:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(shot)
        return real(folder, shot, seed)

    with monkeypatch.context() as patch:
        patch.setattr(study, "_draw", draw_three)
        with pytest.raises(KeyboardInterrupt):
            draw_study(tmp_path, patients=PATIENTS, seed=5, workers=1)
    left = digests(tmp_path)
    assert "manifest.csv" not in left
    assert not [name for name in left if name.endswith(".part")]
    whole = digests(drawn)
    assert {name: whole[name] for name in left} == left
    for name in set(whole) - set(left) - {"manifest.csv"}:  # the rest as the other study has it, but for one image
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((drawn / name).read_bytes())
    (tmp_path / study.Shot(done[0].patient, 0).file).unlink()
    draw_study(tmp_path, patients=PATIENTS, seed=5, workers=1)
    assert digests(tmp_path) == whole


def test_a_folder_of_something_else_is_refused(drawn: Path, tmp_path: Path) -> None:
    before = digests(drawn)
    with pytest.raises(ConfigError, match=r"patients 24, seed 5.*patients 24, seed 6"):
        draw_study(drawn, patients=PATIENTS, seed=6)
    assert digests(drawn) == before
    (tmp_path / "manifest.csv").write_text("image,label\n")
    with pytest.raises(ConfigError, match="did not draw"):
        draw_study(tmp_path, patients=PATIENTS, seed=5)
    assert (tmp_path / "manifest.csv").read_text() == "image,label\n"


def test_a_damaged_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text("{")
    with pytest.raises(ConfigError, match="another phantom study"):
        draw_study(tmp_path, patients=PATIENTS)


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="24 or more"):
        draw_study(tmp_path / "new", patients=23)
    assert not (tmp_path / "new").exists()


def test_the_card_says_what_this_is(drawn: Path) -> None:
    card = json.loads((drawn / "phantom.json").read_text())
    assert "Fictional" in card["what"]
    assert card["manifest_sha256"] == file_digest(drawn / "manifest.csv")


@pytest.mark.parametrize(("patients", "seed"), [(24, 1), (100, 2), (600, 7), (600, 8)])
def test_plan_keeps_patients_splits_sites_and_prevalence_apart(patients: int, seed: int) -> None:
    plan = study.plan_patients(patients, seed)
    assert len(plan) == patients == len({who.identifier for who in plan})
    assert {who.split for who in plan if who.site == "site_c"} == {"test"}
    assert {who.images for who in plan} == {1, 2}
    groups = defaultdict(list)
    for who in plan:
        groups[who.site, who.split].append(who.nodule)
    assert len(groups) == 7
    for split in ("train", "val", "test"):
        assert len({who.nodule for who in plan if who.split == split}) == 2
    for nodules in groups.values():
        assert abs(sum(nodules) - study.PREVALENCE * len(nodules)) <= 1


def test_default_study_is_large_enough() -> None:
    images = Counter()
    for who in study.plan_patients(600, 7):
        images[who.split] += who.images
    assert images["val"] >= 70
    assert images["train"] >= 240
    assert images["test"] >= 120


def test_file_names_do_not_tell_the_label() -> None:
    nodules = [who.nodule for who in study.plan_patients(600, 7) if who.site == "site_a"]
    first, second = nodules[: len(nodules) // 2], nodules[len(nodules) // 2 :]
    assert abs(sum(first) / len(first) - sum(second) / len(second)) < 0.2

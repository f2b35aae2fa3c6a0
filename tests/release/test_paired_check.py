"""The guarantee of int8 checked where a release starts, on a release made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clinic_fixtures import call
from test_golden import BIAS, build_by_hand, release_info, save_model

from medopt.config import SeriesRules
from medopt.core.errors import ReleaseError
from medopt.metrics.conformal import PredictionSets
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.release.golden import golden_batch, replay, verify_release
from medopt.release.layout import check_chain, read_info, write_sums
from medopt.release.paired_check import COVERS, DECIDES, KEEPS, changed_copies
from medopt.release.predictor import Release
from medopt.serving.server.releases import open_release

FLIPPED = [2.6, -2.7, -2.9]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_by_hand(tmp_path_factory.mktemp("built"), release_info())


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "release"))


def flip(folder: Path, *, also_answers: bool = False) -> None:
    """Another int8 file whose decisions are others, sealed again; `also_answers`: with golden answers of its own."""
    save_model(folder / "model.int8.onnx", FLIPPED)
    write_sums(folder)
    if also_answers:
        path = folder / "golden.json"
        values, opened = json.loads(path.read_text()), Release.open(folder, "int8", threads=1)
        for case in values["cases"]:
            answer = opened.predict(folder / case["scan"])
            case["answers"]["int8/onnxruntime"] = answer.probabilities
            case["decisions"]["int8/onnxruntime"] = answer.decision
        path.write_text(json.dumps(values))
        write_sums(folder)


def test_the_copies_are_what_they_say(built: Path) -> None:
    images = golden_batch(built, check_chain(read_info(built)))
    copies = np.stack(list(changed_copies(images)))
    assert copies.shape == (15, 1, 32, 32) and copies.dtype == np.float32
    assert np.array_equal(copies[:3], images) and np.array_equal(copies[3:6], images[..., ::-1])
    assert copies[6:9].std(axis=(1, 2, 3)) == pytest.approx(0.6 * images.std(axis=(1, 2, 3)), rel=1e-4)
    assert copies[9:12].mean(axis=(1, 2, 3)) == pytest.approx(images.mean(axis=(1, 2, 3)), rel=1e-4)
    assert np.allclose(copies[12], (images[0] + images[2]) / 2)


def test_the_build_keeps_the_figures_by_hand_and_they_hold_again(built: Path) -> None:
    record = json.loads((built / "golden.json").read_text())["paired"]
    assert len(record["float"]) == 15 and list(record["int8"]) == ["onnxruntime"]
    kept = record["int8"]["onnxruntime"]
    before = np.array(record["float"])
    after = before + np.subtract(BIAS["int8"], BIAS["float"])
    old, new = (1 / (1 + np.exp(-one / 1.5)) for one in (before, after))
    assert kept["shift"] == pytest.approx(float(np.abs(new - old).mean()), abs=1e-5)
    assert (kept["otherwise"], kept["ruled_out"]) == (0, 0)
    far = (np.abs(new - [0.5, 0.4, 0.6]) > 0.04).all(axis=1)
    assert kept["sure"] == far.tolist() and 0 < sum(kept["sure"]) <= 15
    statements = verify_release(built, 1).statements
    assert [one.statement for one in statements] == [DECIDES, COVERS, KEEPS]
    assert not any(one.fault for one in statements)
    assert statements[0].images == sum(kept["sure"]) and statements[2].images == 15


@pytest.mark.parametrize("also_answers", [False, True], ids=["the file", "file and golden answers"])
def test_another_int8_file_is_refused_by_name_wherever_it_starts(folder: Path, *, also_answers: bool) -> None:
    """Even where checksums and golden answers were made to fit: what int8 is to float was measured at the build."""
    flip(folder, also_answers=also_answers)
    named = f"the guarantee of int8/onnxruntime does not hold here: '{DECIDES}' ("

    def node() -> None:
        StudyInference(folder, "int8", SeriesRules(), ResultSettings(heat_maps=0))

    for start in (lambda: verify_release(folder, 1), lambda: open_release(folder, "int8"), node):
        with pytest.raises(ReleaseError) as refused:
            start()
        assert all(words in str(refused.value) for words in (named, f"'{COVERS}' (", f"'{KEEPS}' ("))
        assert ("answers differ" in str(refused.value)) is not also_answers
    call("verify", folder).refused(6, "ReleaseError", named)
    replay(folder, read_info(folder), [Release.open(folder, "float", threads=1)])  # float promises nothing of int8


def test_answers_that_are_no_number_do_not_hold(folder: Path) -> None:
    path = folder / "golden.json"
    values = json.loads(path.read_text())
    values["paired"]["int8"]["onnxruntime"]["shift"] = float("nan")
    path.write_text(json.dumps(values))
    write_sums(folder)
    with pytest.raises(ReleaseError, match=f"does not hold here: '{KEEPS}'"):
        verify_release(folder, 1)


def test_what_sets_leave_undecided_rules_nothing_out(tmp_path: Path) -> None:
    """int8 that leaves every case undecided decides otherwise than float, and contradicts it nowhere."""
    sets = PredictionSets(0.9, (0.0,) * 6, (5,) * 6)
    info = release_info()
    models = {"float": info.models["float"], "int8": info.models["int8"].model_copy(update={"sets": sets})}
    (tmp_path / "release").mkdir()
    built = build_by_hand(tmp_path / "release", release_info(models=models))
    kept = json.loads((built / "golden.json").read_text())["paired"]["int8"]["onnxruntime"]
    assert (kept["otherwise"], kept["ruled_out"]) == (15, 0)
    verify_release(built, 1)


def test_an_old_release_opens_and_says_that_nothing_is_recorded(folder: Path) -> None:
    path = folder / "golden.json"
    values = json.loads(path.read_text())
    del values["paired"]
    path.write_text(json.dumps(values))
    write_sums(folder)
    assert verify_release(folder, 1).statements == []
    done = call("verify", folder, "--json")
    assert done.code == 0 and "no guarantee is recorded" in done.stdout
    assert done.summary["guarantee"] == {"test_cases": None, "here": []}

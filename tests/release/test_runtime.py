"""`medopt tune runtime`: what it writes, and that it is used only for what it was measured for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from clinic_fixtures import Finished, call

from medopt.core.errors import ReleaseError
from medopt.inference.engines import ENGINES, Mode
from medopt.inference.runtime import MeasuredSetting, Setting, Tuned
from medopt.release import runtime, tune_runtime
from medopt.release.golden import verify_release
from medopt.release.layout import read_info
from medopt.release.predictor import Release
from medopt.release.runtime import DEFAULT_BATCH, runtime_path, write_runtime


@pytest.fixture
def release(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.release, tmp_path / "release"))


def tuned(engine: str, batch: int = 4) -> Tuned:
    alone = Setting(engine=engine, threads=1)
    many = Setting(engine=engine, mode="throughput", threads=1, batch=batch)
    rows: dict[Mode, list[MeasuredSetting]] = {
        "latency": [MeasuredSetting(setting=alone, milliseconds=1, images_per_second=1000)]
    }
    return Tuned(latency=alone, throughput=many, measured=rows)


def test_command_measures_writes_beside_the_release_and_predict_uses_it(release: Path, finished: Finished) -> None:
    done = call("tune", "runtime", release, "--seconds", 0.2, "--json")
    assert done.code == 0, done.stderr
    path = release.with_name("release.runtime.json")
    assert done.summary["file"] == str(path) and "golden cases answered" in done.stdout
    verify_release(release)  # nothing was put into it
    passed = read_info(release).models["int8"].engines
    found = json.loads(path.read_text())["models"]["int8"]
    for goal in ("latency", "throughput"):
        assert {row["setting"]["engine"] for row in found["measured"][goal]} == set(passed)
        assert Release.open(release, mode=goal).setting.model_dump() == found[goal] == done.summary[goal]
    assert done.stdout.count("chosen") == 2
    scans, out = [finished.clinic.data / "scans" / f"{index:03d}.dcm" for index in (5, 4)], release.parent / "out.csv"
    done = call("predict", release, *scans, "--out", out)
    assert done.code == 0 and "not used" not in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("release", "0" * 64, "for another release"),
        ("machine", {"cpu": "Z80", "cores": 1}, r"on another machine \(Z80\)"),
        ("versions", {"onnxruntime": "0.1"}, "with other versions"),
        ("format", 7, "damaged or of another version"),
    ],
)
def test_settings_of_something_else_are_left_aside_with_a_note(
    release: Path, finished: Finished, key: str, value: Any, why: str
) -> None:
    engine = read_info(release).models["int8"].engines[0]
    path = write_runtime(release, "int8", tuned(engine))
    assert Release.open(release, mode="throughput").setting.batch == 4
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    opened = Release.open(release, mode="throughput")
    assert (opened.setting.threads, opened.setting.batch) == (0, DEFAULT_BATCH)
    assert re.search(why, opened.note), opened.note
    scan = finished.clinic.data / "scans" / "000.dcm"
    done = call("predict", release, scan, "--out", release.parent / "out.csv")
    assert done.code == 0 and done.stderr.count("is not used") == 1 and "medopt tune runtime" in done.stderr


def test_engine_that_did_not_pass_the_gate_is_never_taken_from_the_file(release: Path) -> None:
    info = read_info(release)
    write_runtime(release, "int8", tuned("onnxruntime-cuda"))
    opened = Release.open(release, mode="throughput")
    assert opened.engine.name in info.models["int8"].engines
    assert "onnxruntime-cuda did not pass the gate" in opened.note


def test_named_engine_threads_and_the_other_model_keep_what_was_asked_for(release: Path) -> None:
    write_runtime(release, "float", tuned("onnxruntime", batch=2))
    write_runtime(release, "int8", tuned(read_info(release).models["int8"].engines[0]))
    assert Release.open(release, "float", mode="throughput").setting.batch == 2  # kept by the second writing
    named = Release.open(release, "float", "openvino", mode="throughput")
    assert (named.setting.engine, named.setting.threads, named.setting.batch) == ("openvino", 0, DEFAULT_BATCH)
    assert Release.open(release, "float", threads=1).setting.batch == 1


def test_choice_that_does_not_answer_the_golden_cases_is_not_written(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        """An engine that is as fast as can be, and wrong in batches."""

        name = read_info(release).models["int8"].engines[0]

        def __init__(self, *_: object) -> None:
            self.inside = ENGINES[self.name](release / "model.int8.onnx", 1, "latency")

        def run(self, batch: Any) -> Any:
            return self.inside.run(batch) + 0.01 * (len(batch) > 1)

        def run_both(self, batch: Any) -> Any:
            logits, features = self.inside.run_both(batch)
            return logits + 0.01 * (len(batch) > 1), features

    monkeypatch.setattr(Setting, "open", lambda setting, path: Other())
    with pytest.raises(ReleaseError, match="other logits for a batch of 2"):
        tune_runtime.tune_runtime(release, "int8", 0.01, (2,), 1)
    assert not runtime_path(release).exists()


def test_changed_release_and_unknown_model_are_refused(release: Path) -> None:
    call("tune", "runtime", release, "--model", "int4").refused(2, "Invalid value for '--model'")
    (release / "CARD.md").write_text("other")
    call("tune", "runtime", release).refused(6, "CARD.md was changed")
    assert not runtime_path(release).exists()


def test_proof_holds_for_every_engine_and_mode(release: Path) -> None:
    for engine in read_info(release).models["float"].engines:
        for mode in ("latency", "throughput"):
            setting = Setting(engine=engine, mode=mode, threads=1, batch=5)  # type: ignore[arg-type]
            assert tune_runtime.prove(release, "float", setting) <= 1e-5


def test_versions_are_those_installed() -> None:
    import onnxruntime

    assert runtime.engine_versions()["onnxruntime"] == onnxruntime.__version__
    assert runtime.this_machine().cpu and runtime.this_machine().cores >= 1

"""The registry: registered releases answer scans, only what passed becomes champion, serving outlives the store."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from clinic_fixtures import Finished, call
from mlflow import MlflowClient

import medopt
from medopt.cli import pacs
from medopt.cli.serve import _folder, serve
from medopt.config import Study
from medopt.core.errors import ConfigError, ReleaseError, ReleaseRefused
from medopt.core.files import file_digest
from medopt.data.images_seen import images_seen
from medopt.evaluation.shadow_trial import GivenAnswer, ReleaseName, ScanPair, ShadowReport, trial_figures
from medopt.experiments.promote import promote
from medopt.models.starts.files import start_digest
from medopt.pipeline.start import open_study_start, resolve_start, start_file
from medopt.release.layout import SUMS
from medopt.release.predictor import Release, load_release
from medopt.tracking.fetch import DIGEST, fetch_release
from medopt.tracking.registry import GATE, MODEL, Registry
from medopt.tracking.release import log_release

REASON = "better at the new site"
GONE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def runs(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runs folder whose store is a copy of the finished run's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it, and what it set goes with the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "runs").mkdir()
    shutil.copy(finished.runs / "mlflow.db", tmp_path / "runs")
    yield tmp_path / "runs"
    mlflow.set_tracking_uri(None)


@pytest.fixture
def store(runs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")


def second(store: MlflowClient, runs: Path, finished: Finished, *, gate: str = "passed", cases: str = "") -> str:
    """A second version: the same release, predictions that are a little worse, maybe of other cases."""
    registry = Registry(runs)
    table = pd.read_csv(finished.folder / "predictions.csv", dtype=str)
    logits = [name for name in table.columns if name.startswith("logit")]
    noise = np.random.default_rng(0).normal(0, 2, (len(table), len(logits)))
    table[logits] = (table[logits].astype(float) + noise).astype(str)
    table["case_id"] = cases + table["case_id"]
    place = runs / "second"
    place.mkdir()
    table.to_csv(place / "predictions.csv", index=False)
    experiment = store.get_experiment_by_name("clinic")
    assert experiment is not None and registry.uri == f"sqlite:///{runs / 'mlflow.db'}"
    run_id = store.create_run(experiment.experiment_id).info.run_id
    store.log_artifact(run_id, str(place / "predictions.csv"), "tables")
    store.log_artifact(run_id, str(finished.folder / "study.yaml"))
    version = log_release(finished.release, store, run_id)
    known = store.get_model_version("clinic", "1").tags
    for key, value in {GATE: gate, DIGEST: known[DIGEST]}.items():
        store.set_model_version_tag("clinic", version, key, value)
    return version


def test_what_a_run_registers_is_the_candidate_with_its_release(store: MlflowClient, finished: Finished) -> None:
    version = store.get_model_version_by_alias("clinic", "candidate")
    assert version.run_id == finished.metrics["mlflow_run_id"]
    assert [found.version for found in store.search_model_versions("name='clinic'")] == [version.version]
    assert (version.tags[GATE], version.tags[MODEL]) == ("passed", "better than chance")
    assert version.description.startswith("# ")


def test_the_registered_model_answers_as_the_release_does(store: MlflowClient, runs: Path, finished: Finished) -> None:
    Registry(runs)
    model = mlflow.pyfunc.load_model("models:/clinic@candidate")
    scans = sorted(finished.clinic.data.rglob("*.dcm"))[:3]
    wanted = [Release.open(finished.release).predict(path) for path in scans]
    assert any(not one.declined for one in wanted)
    for column, values in (("scan", [path.read_bytes() for path in scans]), ("path", [str(path) for path in scans])):
        found = model.predict(pd.DataFrame({column: values}))
        assert list(found["decision"]) == [one.decision for one in wanted]
        shown = [one.probabilities["blob"] if not one.declined else np.nan for one in wanted]
        np.testing.assert_allclose(found["probability_blob"].astype(float), shown)
    other = model.predict(pd.DataFrame({"scan": [b"rubbish"]}), params={"model": "float"})
    assert "not a format that is read" in other["refused"][0]
    assert other["decision"][0] == "" and other["probability_blob"][0] is None  # NaN is no JSON


def test_it_takes_any_bytes_and_names_the_models_that_it_has(
    store: MlflowClient, runs: Path, finished: Finished
) -> None:
    Registry(runs)
    model = mlflow.pyfunc.load_model("models:/clinic@candidate")
    data = sorted(finished.clinic.data.rglob("*.dcm"))[0].read_bytes()
    answers = [model.predict(pd.DataFrame({"scan": [kind(data)]})) for kind in (bytes, bytearray)]
    answers.append(model.unwrap_python_model().predict(None, pd.DataFrame({"scan": [memoryview(data)]})))
    assert answers[0]["refused"][0] == "" and answers[0]["decision"][0]
    assert all(one.to_dict("records") == answers[0].to_dict("records") for one in answers)
    for empty in (b"", bytearray(), None):
        assert "A row takes `scan`" in model.predict(pd.DataFrame({"scan": [empty]}))["refused"][0]
    for wrong in ("int4", "INT8"):
        with pytest.raises(ConfigError, match=f"`model` is '{wrong}'; this release has float and int8"):
            model.predict(pd.DataFrame({"scan": [data]}), params={"model": wrong})


ASK = """
import base64, json, sys
from pathlib import Path
import mlflow, pandas as pd
folder = Path(sys.argv[1])
data = json.loads((folder / "input_example.json").read_text())["data"][0][0]
answer = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame({"scan": [base64.b64decode(data)]}))
import medopt
print(json.dumps({"where": medopt.__file__, "rows": answer.to_dict("records")}))
"""


@pytest.mark.long
def test_it_answers_in_an_environment_of_its_own_requirements(
    store: MlflowClient, runs: Path, finished: Finished, tmp_path: Path
) -> None:
    """Nothing but what the model names is installed, and medopt comes from the model itself. Needs a registry."""
    Registry(runs)
    got = Path(mlflow.artifacts.download_artifacts("models:/clinic@candidate", dst_path=str(tmp_path / "model")))
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW", "MEDOPT"))}
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, env=alone)
    install = [python, "-m", "pip", "install", "-q", "-r", got / "requirements.txt"]
    installed = subprocess.run(install, env=alone, capture_output=True, text=True, check=False)
    if "connection" in installed.stderr.lower():
        pytest.skip("no package registry answers here")
    assert installed.returncode == 0, installed.stderr
    done = subprocess.run(
        [python, "-c", ASK, got], env=alone, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["where"]).is_relative_to(got)
    wanted = Release.open(finished.release).predict(sorted((finished.release / "golden").iterdir())[0])
    (row,) = told["rows"]
    assert (row["decision"], row["declined"]) == (wanted.decision, wanted.declined or "")


def test_it_is_logged_without_pickle_and_with_a_drawn_example(store: MlflowClient, runs: Path, tmp_path: Path) -> None:
    Registry(runs)
    got = Path(mlflow.artifacts.download_artifacts("models:/clinic@candidate", dst_path=str(tmp_path)))
    assert not [path for path in got.rglob("*") if path.suffix in {".pkl", ".pickle"}]
    assert b"PHANTOM" in base64.b64decode(json.loads((got / "input_example.json").read_text())["data"][0][0])
    asked = (got / "requirements.txt").read_text().split()
    declared = tomllib.loads((Path(medopt.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[<>=,]", text)[0] for text in declared["dependencies"]]
    assert {one.partition("==")[0] for one in asked} >= {*needed, "mlflow", "pandas"}
    assert any(one.startswith("onnxruntime==") for one in asked)
    assert not any(one.startswith(("nncf", "optuna", "ray")) for one in asked)


def test_the_first_champion_needs_a_reason_and_nothing_to_compare_with(store: MlflowClient, runs: Path) -> None:
    registry = Registry(runs)
    with pytest.raises(ConfigError, match="takes a reason"):
        promote(registry, "clinic", "1", " ")
    done = promote(registry, "clinic", "1", REASON)
    assert (done.before, done.compared) == (None, None)
    version = store.get_model_version_by_alias("clinic", "champion")
    assert version.version == 1 and version.tags["promoted_because"] == REASON
    assert version.tags["promoted_by"] and version.tags["promoted_at"].endswith("+00:00")
    with pytest.raises(ConfigError, match="the champion already"):
        promote(registry, "clinic", "1", REASON)
    with pytest.raises(Exception, match="candidate"):
        store.get_model_version_by_alias("clinic", "candidate")


def test_the_next_one_is_compared_on_the_same_cases(store: MlflowClient, runs: Path, finished: Finished) -> None:
    registry = Registry(runs)
    promote(registry, "clinic", "1", REASON)
    version = second(store, runs, finished)
    done = promote(registry, "clinic", version, REASON)
    assert done.before == "1" and done.compared is not None
    told = json.loads(store.get_model_version("clinic", version).tags["compared_with_champion"])
    assert told["cases"] == done.compared.cases == 18
    assert told["auc"]["difference"]["value"] < 0
    assert store.get_model_version_by_alias("clinic", "previous").version == 1
    assert registry.roll_back("clinic", "declines too much") == ("1", version)
    told = registry._client.get_model_version("clinic", "1").tags["promotions"].splitlines()
    assert [line.rpartition(": ")[2] for line in told] == [REASON, "declines too much"]
    assert store.get_model_version_by_alias("clinic", "champion").version == 1
    assert store.get_model_version_by_alias("clinic", "previous").version == int(version)


def test_what_did_not_pass_is_refused(store: MlflowClient, runs: Path, finished: Finished) -> None:
    version = second(store, runs, finished, gate="overridden")
    with pytest.raises(ReleaseRefused, match="did not pass the gate"):
        promote(Registry(runs), "clinic", version, REASON)
    for key, value in {GATE: "passed", MODEL: "overridden: not shown to be better than chance"}.items():
        store.set_model_version_tag("clinic", version, key, value)
    with pytest.raises(ReleaseRefused, match=r"released by name .*not shown to be better than chance"):
        promote(Registry(runs), "clinic", version, REASON)
    assert Registry(runs).versions("clinic")[0].model.startswith("overridden")
    with pytest.raises(ConfigError, match="has no version 77"):
        promote(Registry(runs), "clinic", "77", REASON)
    with pytest.raises(ConfigError, match="no model 'other'"):
        Registry(runs).versions("other")


def test_without_shared_cases_it_takes_a_word(store: MlflowClient, runs: Path, finished: Finished) -> None:
    registry = Registry(runs)
    promote(registry, "clinic", "1", REASON)
    version = second(store, runs, finished, cases="other-")
    with pytest.raises(ConfigError, match="--uncompared"):
        promote(registry, "clinic", version, REASON)
    assert registry.champion("clinic") == "1"
    promote(registry, "clinic", version, REASON, uncompared=True)
    assert "not compared" in store.get_model_version("clinic", version).tags["compared_with_champion"]


def test_a_release_is_fetched_checked_and_kept(
    runs: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = Registry(runs).uri
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'another.db'}")  # the store in use is another
    found = fetch_release("models:/clinic@candidate", uri, tmp_path / "kept")
    assert mlflow.get_tracking_uri().endswith("another.db")
    assert found.place.is_symlink() and found.note == ""
    assert (found.place / SUMS).read_bytes() == (finished.release / SUMS).read_bytes()
    Release.open(found.place)
    again = fetch_release("models:/clinic@candidate", GONE, tmp_path / "kept")
    assert again.place == found.place and "does not answer" in again.note
    with pytest.raises(ConfigError, match="was not fetched"):
        fetch_release("models:/clinic@champion", GONE, tmp_path / "kept")
    with pytest.raises(ConfigError, match="has no clinic champion"):
        fetch_release("models:/clinic@champion", uri, tmp_path / "kept")


def test_what_is_not_what_was_logged_is_refused(store: MlflowClient, runs: Path, tmp_path: Path) -> None:
    uri = Registry(runs).uri
    found = fetch_release("models:/clinic/1", uri, tmp_path / "kept")
    model = found.place / "model.int8.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError):
        fetch_release("models:/clinic/1", uri, tmp_path / "kept")
    store.set_model_version_tag("clinic", "1", DIGEST, "0" * 64)
    with pytest.raises(ReleaseError, match="not the release that was logged"):
        fetch_release("models:/clinic/1", uri, tmp_path / "kept")
    with pytest.raises(ConfigError, match="names no version"):
        fetch_release("models:/clinic", uri, tmp_path / "kept")


def test_the_commands(runs: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
    monkeypatch.setenv("MEDOPT_RELEASES", str(tmp_path / "kept"))
    listed = call("promote", "clinic")
    assert listed.code == 0 and "candidate" in listed.stdout
    call("promote", "models:/clinic@newest", "--reason", REASON).refused(2, "has no newest; its aliases: ", "candidate")
    call("promote", "models:/clinic", "--reason", REASON).refused(2, "names no version")
    call("promote", "models:/clinic/1", "2", "--reason", REASON).refused(2, "names a version already")
    promoted = call("promote", "models:/clinic@candidate", "--reason", REASON)
    assert "version 1 is the champion" in promoted.stdout
    call("rollback", "clinic", "--reason", "x").refused(2, "no previous champion")
    pulled = call("pull", "models:/clinic@champion").stdout.strip()
    assert Path(pulled) == tmp_path / "kept" / "clinic@champion"
    assert "unchanged; golden cases" in call("verify", "models:/clinic@champion").stdout


def test_every_door_of_a_release_takes_a_registered_one(
    runs: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the registry that MLFLOW_TRACKING_URI names, else of that of --runs, from whatever folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("MEDOPT_RELEASES", str(tmp_path / "kept"))
    uri, scans, node = "models:/clinic@candidate", finished.clinic.data / "scans", tmp_path / "node.yaml"
    peer = {"aet": "PACS", "host": "127.0.0.1", "port": 9}
    told = {
        "aet": "NODE",
        "release": uri,
        "spool": "spool",
        "accept": [{"aet": "PACS", "addresses": ["127.0.0.1"]}],
        "destinations": [peer],
    }
    node.write_text(yaml.safe_dump(told))
    doors: list[tuple[object, ...]] = [
        ("verify", uri),
        ("predict", uri, *sorted(scans.glob("*.dcm"))[:20], "--out", "answers.csv"),
        ("drift", uri, "answers.csv"),
        ("tune", "runtime", uri, "--seconds", 0.1),
        ("export", uri, "--format", "openvino", "--out", "ir"),
        ("pull", uri),
    ]
    for words in doors:
        call(*words).refused(2, "ConfigError", "No registry to ask", "MLFLOW_TRACKING_URI", "--runs")
        assert (done := call(*words, "--runs", runs)).code == 0, (words, done.stderr)
    call("pacs", "check", node).refused(2, "No registry to ask")
    call("pacs", "check", node, "--runs", runs).refused(2, "No answer from PACS")  # the release is in order
    assert all("runs" in signature(door).parameters for door in (pacs.run, pacs.check, serve))
    assert _folder(Path(uri), runs) == tmp_path / "kept" / "clinic@candidate"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
    assert all(call(*words).code == 0 for words in doors[:2])
    call("compress", uri).refused(3, "DataError", "names a release, and a run is needed here")
    with pytest.raises(ReleaseError, match=f"`medopt pull {uri}`"):
        load_release(uri)


def test_a_registered_version_is_a_start(
    runs: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name in the registry, with its digest in the study: another version under this name is refused."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
    monkeypatch.setenv("MEDOPT_RELEASES", str(tmp_path / "kept"))
    given = yaml.safe_load(finished.clinic.study_file.read_text()) | {"model": {"start": "models:/clinic@candidate"}}
    study = resolve_start(Study.model_validate(given), tmp_path)
    file = start_file(study.model.start)
    seen = images_seen(finished.folder / "checkpoints" / "best.safetensors")
    assert file is not None and seen and images_seen(file) == seen
    float_model = finished.release / "model.float.onnx"
    assert study.model.start == "models:/clinic@candidate"
    assert (study.model.start_digest, study.model.width) == (start_digest(float_model), 0.125)
    other = {"start": study.model.start, "start_digest": "0" * 64}
    with pytest.raises(ConfigError, match=r"has changed: .* The registry gives another version under this name"):
        resolve_start(Study.model_validate(given | {"model": other}), tmp_path)
    unknown = given | {"model": {"start": "models:/clinic@champion"}}
    with pytest.raises(ConfigError, match="has no clinic champion"):
        resolve_start(Study.model_validate(unknown), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", GONE)
    assert "the registry does not answer" in open_study_start(study).note


def test_the_registry_of_a_start_is_that_of_the_runs_folder(
    runs: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is not there is not made."""
    monkeypatch.setenv("MEDOPT_RELEASES", str(tmp_path / "kept"))
    given = yaml.safe_load(finished.clinic.study_file.read_text()) | {"model": {"start": "models:/clinic@candidate"}}
    assert resolve_start(Study.model_validate(given), tmp_path, runs).model.start_digest
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"No registry to ask: .* runs holds no mlflow.db"):
        resolve_start(Study.model_validate(given), tmp_path)
    call("verify", "models:/clinic@candidate").refused(2, "No registry to ask")
    assert not [*Path("runs").iterdir()]


def test_a_change_plan_is_obeyed_recorded_and_asked_for_again(
    store: MlflowClient, runs: Path, finished: Finished, tmp_path: Path
) -> None:
    registry, plan = Registry(runs), tmp_path / "plan.yaml"
    plan.write_text("model: clinic\nmay_change: [training]\nmargins: {auc: 0.001}\npatients: 5\n")
    promote(registry, "clinic", "1", REASON, plan=plan, record=runs)
    version = second(store, runs, finished)
    with pytest.raises(ConfigError, match="was promoted by a change plan"):
        promote(registry, "clinic", version, REASON, record=runs)
    with pytest.raises(ReleaseRefused, match=r"lies outside its change plan: auc changes by"):
        promote(registry, "clinic", version, REASON, plan=plan, record=runs)
    assert registry.champion("clinic") == "1"
    wide = tmp_path / "wide.yaml"
    wide.write_text("model: clinic\nmay_change: []\nmargins: {auc: 1}\npatients: 5\n")
    with pytest.raises(ConfigError, match="--new-plan"):
        promote(registry, "clinic", version, REASON, plan=wide, record=runs)
    promote(registry, "clinic", version, REASON, plan=wide, new_plan=True, record=runs)
    assert registry.champion("clinic") == version
    events = [json.loads(line) for line in (runs / "changes.jsonl").read_text().splitlines()]
    assert [(one["event"], one["version"]) for one in events] == [
        ("promoted", "1"),
        ("refused", version),
        ("promoted", version),
    ]
    assert events[1]["because"][0].startswith("auc changes by") and events[2]["reason"] == REASON


def trial_report(path: Path, candidate: str, present: str) -> Path:
    """A shadow report in which 45 of 50 patients got the same decision."""
    pairs = [
        ScanPair(
            f"s{at}", f"i{at}", f"p{at}", "", "", *(GivenAnswer(word, "", {"blob": 0.5}, (0.0,)) for word in words)
        )
        for at, words in enumerate([("blob", "blob")] * 45 + [("blob", "clear")] * 5)
    ]
    names = [ReleaseName(digest=digest, study="clinic", created="now") for digest in (present, candidate)]
    counts = {"waiting": 0, "compared": 50, "failed": 0, "skipped": 0}
    ShadowReport(
        node="MEDOPT", present=names[0], candidate=names[1], since="", until="", confidence=0.95, studies=counts,
        reasons={}, unpaired=0, overall=trial_figures(pairs, ["blob"], 0.95), sites={}, devices={}, changed=(), cost={},
    ).write(path)  # fmt: skip
    return path


def test_a_shadow_trial_of_this_version_stands_beside_the_comparison(
    store: MlflowClient, runs: Path, finished: Finished, tmp_path: Path
) -> None:
    registry, plan = Registry(runs), tmp_path / "plan.yaml"
    plan.write_text(
        "model: clinic\nmay_change: []\nmargins: {auc: 1}\npatients: 5\n"
        "shadow: {patients: 50, agreement: 0.7, declined: 0.1}\n"
    )
    digest = file_digest(finished.release / SUMS)
    trial = trial_report(tmp_path / "trial.json", digest, digest)
    with pytest.raises(ConfigError, match="has no champion that a shadow trial"):
        promote(registry, "clinic", "1", REASON, shadow=trial)
    promote(registry, "clinic", "1", REASON)
    version = second(store, runs, finished)
    other = trial_report(tmp_path / "other.json", "0" * 64, digest)
    with pytest.raises(ConfigError, match="The candidate of the shadow report"):
        promote(registry, "clinic", version, REASON, shadow=other)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ConfigError, match="was not written by"):
        promote(registry, "clinic", version, REASON, shadow=tmp_path / "no.json")
    with pytest.raises(ReleaseRefused, match="asks for a shadow trial"):
        promote(registry, "clinic", version, REASON, plan=plan, record=runs)
    assert registry.champion("clinic") == "1"
    words = ("--plan", plan, "--shadow", trial, "--runs", runs, "--reason", REASON)
    done = call("promote", "clinic", version, *words)
    assert done.code == 0, done.stderr
    assert "same decision" in done.stdout and "90.0 %" in done.stdout
    kept = json.loads(store.get_model_version("clinic", version).tags["shadow_trial"])
    assert (kept["patients"], kept["agreement"][0], kept["studies"]["compared"]) == (50, 0.9, 50)
    recorded = json.loads((runs / "changes.jsonl").read_text().splitlines()[-1])
    assert (recorded["event"], recorded["shadow"]) == ("promoted", file_digest(trial))


def test_a_plan_of_another_model_is_refused(runs: Path, store: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("model: other\nmay_change: []\nmargins: {}\n")
    with pytest.raises(ConfigError, match="is of the model other"):
        promote(Registry(runs), "clinic", "1", REASON, plan=tmp_path / "plan.yaml")

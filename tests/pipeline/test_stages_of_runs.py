"""What a changed setting makes a run do again: the stages that read it and those after them, and never the training."""

from __future__ import annotations

import csv
import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from clinic import STAGES, Clinic
from clinic_fixtures import Finished, call, run_words

from medopt.config.section import Section
from medopt.config.study_file import load_study
from medopt.evaluation.run_metrics import RunMetrics
from medopt.pipeline.stage import Stage
from medopt.pipeline.stage_settings import PRUNED, READS
from medopt.release.layout import read_info

ENDING = ["release", "report", "record"]


@pytest.fixture(scope="module")
def again(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of this module's own, which the tests here go on with one after the other."""
    runs = tmp_path_factory.mktemp("again") / "runs"
    done = call(*run_words(clinic, runs))
    assert done.code == 0, done.stderr
    return Finished(clinic, runs, done, 0)


def redone(run: Finished, *settings: str) -> list[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    done = call(*run_words(run.clinic, run.runs), *words)
    assert done.code == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stderr.splitlines() if line and line[0] != " "]
    return [line[0] for line in lines if len(line) == 1 and line[0] in STAGES]


def test_what_training_does_not_read_trains_nothing_again(again: Finished) -> None:
    assert redone(again, "question=Is there a bright spot?") == ENDING
    assert redone(again, "question=Is there a bright spot?", "intended_use=a test") == ENDING
    assert redone(again, "intended_use=a test", "evaluation.explain=3") == ["explain", *ENDING]
    assert redone(again, "evaluation.explain=3", "domain.margin=2") == ["explain", "domain", *ENDING][1:]
    folders = list((again.runs / "clinic").iterdir())
    assert folders == [again.folder]
    assert json.loads((again.folder / "metrics.json").read_text())["mlflow_run_id"] == again.metrics["mlflow_run_id"]


@pytest.mark.parametrize("setting", ["compression.gate.max_probability_shift=0.9", "evaluation.confidence=0.9"])
def test_what_the_gate_reads_is_judged_anew(again: Finished, setting: str) -> None:
    assert redone(again, setting) == [*STAGES[STAGES.index("judge") :]]


def test_what_training_reads_trains_a_run_of_its_own(again: Finished) -> None:
    before = set((again.runs / "clinic").iterdir())
    done = call(*run_words(again.clinic, again.runs), "--set", "training.epochs=1", "--dry-run")
    assert done.summary["plan"]["stages"] == dict.fromkeys(STAGES, "to do")
    assert "a new one below" in done.summary["plan"]["folder"]
    assert set((again.runs / "clinic").iterdir()) == before


def test_the_plan_knows_what_is_to_do(again: Finished) -> None:
    redone(again)  # the study as it stands in its file
    words = [*run_words(again.clinic, again.runs), "--dry-run"]
    for settings, due in (
        ([], []),
        (["question=Another?"], ENDING),
        (["domain.margin=3"], ["domain", *ENDING]),
        (["compression.gate.strict=true"], list(STAGES[STAGES.index("judge") :])),
    ):
        done = call(*words, *(word for setting in settings for word in ("--set", setting)))
        plan = done.summary["plan"]["stages"]
        assert [stage for stage in STAGES if plan[stage] == "to do"] == due


def test_a_stage_reads_no_setting_that_its_key_leaves_out(
    again: Finished, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every attribute of the study that is read while a stage runs is one of those in its key."""
    study = load_study(clinic.study_file)
    paths = {type(study): ""} | {type(value): f"{name}." for name, value in study if isinstance(value, Section)}
    for name, value in list(study):
        for key, part in value if isinstance(value, Section) else ():
            if isinstance(part, Section):
                paths[type(part)] = f"{name}.{key}."
    read: dict[str, set[str]] = defaultdict(set)
    running: list[str] = []
    original, lock = Section.__getattribute__, threading.Lock()

    def watched(self: Section, attribute: str) -> Any:
        kind = type(self)
        if running and kind in paths and attribute in kind.model_fields:
            with lock:
                read[running[-1]].add(f"{paths[kind]}{attribute}")
        return original(self, attribute)

    complete = Stage.complete

    def completing(self: Stage[Any], context: Any) -> None:
        work = self.run

        def run(context: Any) -> Any:
            running.append(self.name)
            try:
                return work(context)
            finally:
                running.pop()

        monkeypatch.setattr(self, "run", run)
        complete(self, context)

    monkeypatch.setattr(Section, "__getattribute__", watched)
    monkeypatch.setattr(Stage, "complete", completing)
    done = call(*run_words(clinic, tmp_path / "runs"), "--set", "compression.pruning.target=0.3", "--set",
                "compression.pruning.epochs=1", "--set", "training.epochs=1")  # fmt: skip
    assert done.code == 0, done.stderr
    assert set(read) >= {"train", "pruned-1", "compress", "judge", "evaluate", "robustness", "explain", "domain"}
    sections = {name for name, value in study if isinstance(value, Section)}
    secrets = {}
    for stage, names in read.items():
        allowed = READS[PRUNED if stage.startswith(PRUNED) else stage]
        secret = [
            name
            for name in names - sections
            if not any(name == path or name.startswith(f"{path}.") for path in allowed)
            and not any(path.startswith(f"{name}.") for path in allowed)  # the way to a key that is allowed
        ]
        if secret:
            secrets[stage] = secret
    assert secrets == {}
    drawing = {stage for stage in read if "evaluation.bootstrap" in READS.get(stage, ())}
    assert drawing == {stage for stage, names in read.items() if "evaluation.bootstrap" in names - sections} & set(
        READS
    )


def test_mlflow_says_which_settings_changed(again: Finished) -> None:
    """Parameters stay those that the run was begun with."""
    from mlflow import MlflowClient

    client, run_id = MlflowClient(again.store), again.metrics["mlflow_run_id"]
    redone(again, "question=Is there a dark spot?")
    run = client.get_run(run_id)
    assert run.data.params["question"] == "Is there a bright blob?"
    assert run.data.tags["settings changed"] == "question: Is there a bright blob? -> Is there a dark spot?"
    redone(again)
    assert client.get_run(run_id).data.tags["settings changed"] == ""


def test_a_guarantee_goes_from_judge_into_report_release_card_and_answers(again: Finished, tmp_path: Path) -> None:
    assert redone(again, "evaluation.abstain.coverage=0.8")[0] == "judge"
    metrics, info = RunMetrics.read(again.folder), read_info(again.folder / "release")
    for kind in ("float", "int8"):
        point, sets = metrics.operating_point[kind], info.models[kind].sets
        assert sets is not None and sets == point.sets and info.models[kind].operating_point.band == point.band
        assert sets.coverage == 0.8 and min(sets.patients) >= sets.patients_needed == 4
    band = metrics.selective.int8.band
    assert band is not None and len(band.kept) == 2
    assert "at least 80 % have their images answered" in (again.folder / "release" / "CARD.md").read_text()
    assert "What is promised to each class, int8" in (again.folder / "report.html").read_text()
    golden = json.loads((again.folder / "release" / "golden.json").read_text())
    assert all(set(case["decisions"]) == set(case["answers"]) for case in golden["cases"])
    done = call("predict", again.folder, again.clinic.data / "scans", "--out", tmp_path / "answers.csv")
    assert done.code == 0, done.stderr
    low, high = info.models["int8"].operating_point.band or (0, 0)
    with (tmp_path / "answers.csv").open(newline="") as stream:
        answers = [row for row in csv.DictReader(stream) if row["decision"]]
    inside = [row["decision"] == "undecided" for row in answers]
    assert answers and inside == [low <= float(row["probability_blob"]) < high for row in answers]

"""A study file: what it may say, what is refused, and what becomes of an override."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medopt.config import Schedule, Study
from medopt.config.study_file import data_folder, find_manifest, load_study
from medopt.core.errors import ConfigError

TEXT = """
name: small
question: Is it there?
data: {manifest: m.csv, labels: [no, finding]}
prepare: {size: [32, 32]}
training: {epochs: 3}
"""
BASE: dict[str, Any] = {
    "name": "small",
    "question": "Is it there?",
    "data": {"manifest": "m.csv", "labels": ["no", "finding"]},
    "prepare": {"size": [32, 32]},
}
PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def quoted(text: str) -> str:
    return text.replace("[no,", "['no',")


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    return written(tmp_path, quoted(TEXT))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_study_of_the_repository_is_valid(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_there_are_studies_in_the_repository() -> None:
    assert {"phantom", "breastmnist", "busi", "hippocampus"} <= {path.stem for path in PIPELINES}


def test_override_is_laid_over_the_file(study_file: Path) -> None:
    study = load_study(study_file, ["training.epochs=9", "seed=4", "prepare.size=[16, 24]", "augment.flip=[]"])
    assert (study.training.epochs, study.seed, study.prepare.size, study.augment.flip) == (9, 4, [16, 24], [])
    assert load_study(study_file).training.epochs == 3


def test_override_goes_into_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    path = written(tmp_path, quoted(TEXT).replace("training: {epochs: 3}", "training:"))
    assert load_study(path, ["training.optimizer.lr=0.5"]).training.optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("epochs: 3", "epoch: 3", r"unknown key training\.epoch: did you mean epochs\?"),
        ("epochs: 3", "zzzzzzzz: 3", r"unknown key training\.zzzzzzzz: known here are epochs"),
        ("epochs: 3", "epochs: 0", r"training\.epochs: .*\(got 0\)"),
        ("question: Is it there?", "", r"question is missing"),
        ("name: small", "name: Two Words", r"name: .*\(got 'Two Words'\)"),
        ("finding]", "finding, other]", r"a binary study has two labels, not 3"),
        ("finding]", "'no']", r"a label occurs twice"),
        ("[32, 32]}", "[32, 32], spacing_mm: [1, 1, 1]}", r"spacing_mm has 3 axes, size has 2"),
        ("[32, 32]}", "[32, 32], intensity: {low: 9, high: 1}}", r"low \(9(\.0)?\) must be below high \(1(\.0)?\)"),
        ("[32, 32]}", "[32, 32], intensity: {high: 900}}", r"percentiles go from 0 to 100"),
        ("name: small", "name: small\nname: other", r"the key name stands twice"),
        ("epochs: 3}", "epochs: 3", r"small\.yaml cannot be read as a study file"),
    ],
)
def test_refused_with_the_file_and_the_key(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in TEXT
    path = written(tmp_path, quoted(TEXT.replace(before, after)))
    with pytest.raises(ConfigError, match=said) as refused:
        load_study(path)
    assert "small.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unquoted_no_is_told_apart_from_a_label(tmp_path: Path) -> None:
    """YAML reads `no` as false."""
    with pytest.raises(ConfigError, match=r"data\.labels\.0: .*\(got False\)"):
        load_study(written(tmp_path, TEXT))


def test_many_faults_are_told_at_once(tmp_path: Path) -> None:
    text = quoted(TEXT).replace("epochs: 3", "epochs: -1, patience: -1, batch_size: 0")
    with pytest.raises(ConfigError) as refused:
        load_study(written(tmp_path, text))
    assert all(key in str(refused.value) for key in ("training.epochs", "training.patience", "training.batch_size"))


def test_absent_file_names_those_beside_it(study_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"There is no study file .*smal\.yaml\. Study files beside it: .*small\.yaml"
    ):
        load_study(study_file.with_name("smal.yaml"))


@pytest.mark.parametrize("content", [b"", b"- a\n- b\n", b"just words", b"\xff\xfe\x00"])
def test_what_is_no_study_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"s\.yaml (is not|cannot be read as) a study file"):
        load_study(path)


def test_folder_in_place_of_a_study_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a study file"):
        load_study(tmp_path)


def test_digest_is_that_of_the_meaning(study_file: Path, tmp_path: Path) -> None:
    """Order, comments and defaults written out do not make another study; a value does."""
    study = load_study(study_file)
    (tmp_path / "other").mkdir()
    lines = ["# a note", *reversed(quoted(TEXT).strip().splitlines()), "seed: 0"]
    assert load_study(written(tmp_path / "other", "\n".join(lines))).digest() == study.digest()
    assert load_study(study_file, ["seed=1"]).digest() != study.digest()


def test_study_is_frozen() -> None:
    study = Study.model_validate(BASE)
    with pytest.raises(ValidationError, match="frozen"):
        study.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 2), ("multilabel", 2)])
def test_outputs_follow_the_task(task: str, outputs: int) -> None:
    study = Study.model_validate(BASE | {"data": BASE["data"] | {"task": task}})
    assert study.data.outputs == outputs


def test_dimensions_follow_the_size() -> None:
    assert Study.model_validate(BASE).spatial_dims == 2
    assert Study.model_validate(BASE | {"prepare": {"size": [16, 16, 16]}}).spatial_dims == 3


def test_data_folder_is_option_then_variable_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDOPT_DATA", raising=False)
    assert data_folder(None) == Path("data")
    monkeypatch.setenv("MEDOPT_DATA", "scans")
    assert data_folder(None) == Path("scans")
    assert data_folder(Path("mine")) == Path("mine")


def test_manifest_beside_the_study_goes_before_that_of_the_data(study_file: Path, tmp_path: Path) -> None:
    study, data = load_study(study_file), tmp_path / "data"
    data.mkdir()
    with pytest.raises(ConfigError, match=r"looked for .*m\.csv and .*data/m\.csv\. .*medopt fetch small"):
        find_manifest(study, study_file, data)
    (data / "m.csv").touch()
    assert find_manifest(study, study_file, data) == data / "m.csv"
    (tmp_path / "m.csv").touch()
    assert find_manifest(study, study_file, data) == tmp_path / "m.csv"


@pytest.mark.parametrize(
    ("task", "labels", "evaluation", "said"),
    [
        ("multiclass", ["a", "b", "c"], {"prevalence": 0.1}, "evaluation.prevalence is the share of one finding"),
        ("multiclass", ["a", "b", "c"], {"operating_point": "cost"}, "a multiclass study has none"),
        ("multilabel", ["a", "b"], {"abstain": 0.1}, "a multilabel study decides each label"),
        ("binary", ["no", "undecided"], {"abstain": 0.1}, "no label may be called undecided"),
        ("multilabel", ["a", "undecided:a"], {"abstain": {"coverage": 0.9}}, "no label may be called undecided"),
        ("binary", ["no", "yes"], {"abstain": {"coverage": 1}}, "a share from 0 to below 1, or {coverage: 0.95}"),
        ("binary", ["no", "yes"], {"abstain": {"cover": 0.9}}, "a share from 0 to below 1, or {coverage: 0.95}"),
        ("binary", ["no", "yes"], {"abstain": True}, "a share from 0 to below 1, or {coverage: 0.95}"),
    ],
)
def test_settings_that_the_task_has_no_answer_to(
    task: str, labels: list[str], evaluation: dict[str, object], said: str
) -> None:
    data = {"manifest": "m.csv", "labels": labels, "task": task}
    with pytest.raises(ValueError, match=said):
        Study.model_validate(
            {"name": "s", "question": "?", "data": data, "prepare": {"size": [32, 32]}, "evaluation": evaluation}
        )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("[no, yes]", "data.labels.0: YAML takes the words no, off and false for a truth value. Put it in quotes"),
        ("[a, on]", 'as in "yes"'),
        ("[0, 1]", 'data.labels.0: YAML takes 0 for a number, and a text is needed. Put it in quotes: "0"'),
        ("[a, 2021-01-01]", "for a date"),
    ],
)
def test_labels_without_quotes_say_so(tmp_path, labels, said):
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nquestion: q\ndata: {{manifest: m.csv, labels: {labels}}}\nprepare: {{size: [32, 32]}}\n")
    with pytest.raises(ConfigError) as error:
        load_study(path)
    assert said in str(error.value)


def test_a_lowest_rate_above_the_rate_is_refused() -> None:
    study = {
        "name": "s",
        "question": "?",
        "data": {"manifest": "m.csv", "labels": ["a", "b"]},
        "prepare": {"size": [32, 32]},
    }
    for name in ("cosine", "cosine_restarts", "plateau"):
        training = {"optimizer": {"lr": 1e-4}, "schedule": {"name": name, "eta_min": 1e-3}}
        with pytest.raises(ValueError, match=r"eta_min, the lowest rate, is 0\.001, above a learning rate of 0\.0001"):
            Study.model_validate({**study, "training": training})
    training = {"optimizer": {"lr": 1e-4}, "schedule": {"name": "one_cycle", "eta_min": 1e-3}}  # which has none
    assert Study.model_validate({**study, "training": training}).training.schedule.eta_min == 1e-3


@pytest.mark.parametrize(
    ("name", "warmup", "is_refused"),
    [
        ("cosine_restarts", 0.1, True),
        ("plateau", 0.1, True),
        ("cosine_restarts", 0.2, False),  # a resolved file has every default
        ("plateau", 0.0, False),  # none is what there is
        ("constant", 0.1, False),
        ("cosine", 0.1, False),
        ("one_cycle", 0.1, False),
    ],
)
def test_a_warmup_that_the_schedule_does_not_read_is_refused(name: str, warmup: float, is_refused: bool) -> None:
    if not is_refused:
        assert Schedule.model_validate({"name": name, "warmup": warmup}).warmup == warmup
        return
    with pytest.raises(ValidationError, match=f"warmup is 0.1, but the schedule {name} .*take constant, cosine or one"):
        Schedule.model_validate({"name": name, "warmup": warmup})

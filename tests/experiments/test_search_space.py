"""What `--param` says, and what of it is refused with the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest
from clinic import STUDY, write_study

from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError
from medopt.experiments.search_space import Parameter, parse_space, value_of


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    return write_study(tmp_path, STUDY)


def parsed(study_file: Path, *texts: str) -> tuple[Parameter, ...]:
    return parse_space(texts, study_file, [])


def test_ranges_and_choices(study_file: Path) -> None:
    found = parsed(
        study_file,
        "training.optimizer.lr=1e-4..1e-2:log",
        "training.ema_decay=0..0.99",
        "training.patience=5..20",
        "model.depth=14, 50",
        "augment.flip=[],[left_right, up_down]",
    )
    assert found[0] == Parameter("training.optimizer.lr", (), 1e-4, 1e-2, is_log=True)
    assert found[1] == Parameter("training.ema_decay", (), 0.0, 0.99)
    assert found[2] == Parameter("training.patience", (), 5.0, 20.0, is_whole=True)
    assert found[3].choices == ("14", "50")
    assert found[4].choices == ("[]", "[left_right, up_down]")


def test_number_written_is_the_number_read(study_file: Path) -> None:
    """YAML takes 1e-05 for a text: the override must not."""
    lr = Parameter("training.optimizer.lr", (), 1e-6, 1.0)
    for value in (1e-05, 1.25e-05, 0.003, 0.040396094406545464):
        study = load_study(study_file, [f"training.optimizer.lr={lr.written(value)}"])
        assert study.training.optimizer.lr == value
    assert Parameter("training.patience", (), 1, 9, is_whole=True).written(7.0) == "7"


def test_own_value_is_found_in_the_space(study_file: Path) -> None:
    study = load_study(study_file)
    space = parsed(study_file, "training.optimizer.lr=1e-4..1e-2:log", "model.depth=14,50", "training.patience=1..9")
    assert [one.near(value_of(study, one.path)) for one in space] == [0.003, "14", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training.optimiser.lr=1..2", "unknown key training.optimiser: did you mean optimizer"),
        ("model.dept=26,50", "unknown key model.dept: did you mean depth"),
        ("model.depth.more=1,2", "model.depth is a value, not a section"),
        ("model.depth", "--param takes PATH=LOW..HIGH"),
        ("model.depth=26", "one value leaves nothing to choose"),
        ("model.depth=26,27", "model.depth"),
        ("training.optimizer.lr=1e-2..1e-4", "from low to high"),
        ("training.optimizer.lr=0..1e-2:log", "above 0 where it is :log"),
        ("training.optimizer.lr=low..high", "from a number to a number"),
        ("training.patience=1.5..3", "whole numbers from low to high"),
        ("training.patience=0..3", "training.patience"),
        ("training.optimizer.name=0..3", "is not a number; list its values"),
    ],
)
def test_what_no_study_takes_is_refused(study_file: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(study_file, text)
    assert words in str(refused.value)


def test_path_given_twice_or_none_is_refused(study_file: Path) -> None:
    for texts in ((), ("model.depth=14,50", "model.depth=14,101")):
        with pytest.raises(ConfigError, match="once or more, each for another path"):
            parsed(study_file, *texts)

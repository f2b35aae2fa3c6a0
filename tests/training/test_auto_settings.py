"""`auto` in a study file becomes a number before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.training import auto_settings
from medopt.training.auto_settings import USUAL_BATCH, resolve_auto, with_sizes
from medopt.training.batch_size import BatchTest, Trial
from medopt.training.job import PreparedSplit


@pytest.fixture
def given(
    tmp_path: Path,
    tiny_study: Callable[..., Study],
    tiny_set: Callable[..., PreparedSplit],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    prepared = tiny_set(tmp_path, tiny_study(), 16)
    monkeypatch.setattr(
        auto_settings, "range_test", partial(auto_settings.range_test, steps=20, low=1e-4)
    )  # a shorter one

    def resolve(**training: Any) -> tuple[Study, dict[str, Any]]:
        return resolve_auto(tiny_study(training=training), prepared.cases, prepared.files)

    return resolve


def test_a_study_that_says_all_is_left_as_it_is(given: Callable[..., Any], tiny_study: Callable[..., Study]) -> None:
    assert given() == (tiny_study(), {})


def test_the_rate_is_the_range_tests(given: Callable[..., Any]) -> None:
    optimizer = {"name": "adamw", "lr": "auto", "weight_decay": 0.03}
    study, facts = given(optimizer=optimizer)
    assert study.training.optimizer.rate == facts["lr"]["suggestion"] < facts["lr"]["turn"]
    assert study.training.optimizer.weight_decay == 0.03


def test_the_batch_comes_first_and_the_rate_is_found_with_it(
    given: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = BatchTest((Trial(2, 1.0, 1),), 10, "cpu", 8, 4, 2, "because")
    asked: list[Study] = []
    original = auto_settings.range_test
    monkeypatch.setattr(auto_settings, "find_batch_size", lambda *_, **__: found)
    monkeypatch.setattr(auto_settings, "range_test", lambda s, *a, **k: (asked.append(s), original(s, *a, **k))[1])
    study, facts = given(batch_size="auto", micro_batch="auto", optimizer={"lr": "auto"})
    assert study.training.resolved_sizes == (8, 4) and set(facts) == {"batch", "lr"}
    assert asked[0].training.resolved_sizes == (8, 4)


def test_no_rate_at_all_is_an_error_with_a_way_out(given: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = auto_settings.range_test
    monkeypatch.setattr(auto_settings, "range_test", lambda *a, **k: replace(original(*a, **k), suggestion=None))
    with pytest.raises(TrainingError, match=r"training.optimizer.lr is auto\. .*Set a rate"):
        given(optimizer={"lr": "auto"})


def test_sizes_without_measuring(tiny_study: Callable[..., Study]) -> None:
    study = with_sizes(tiny_study(training={"batch_size": "auto", "micro_batch": "auto"}))
    assert study.training.resolved_sizes == (USUAL_BATCH, USUAL_BATCH)

"""A stage runs again where its key or its files have changed, and for no other reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medopt.config import Study
from medopt.core.reporter import SilentReporter
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stage_settings import READS, settings_digest, stage_names
from medopt.pipeline.study_cases import StudyCases


@dataclass(frozen=True, slots=True)
class Count:
    """How often the stage ran, and an epoch's figure, which may be NaN."""

    calls: int
    loss: float


class CountingStage(Stage[Count]):
    name = "explain"
    result_type = Count
    calls = 0
    more = 0

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        return [folder.path / "output.txt"]

    def depends_on(self, context: RunContext) -> Mapping[str, Any]:
        return {"more": self.more}

    def run(self, context: RunContext) -> Count:
        self.calls += 1
        context.folder.path.mkdir(exist_ok=True)
        (context.folder.path / "output.txt").write_text("written")
        return Count(self.calls, math.nan)


class LaterStage(CountingStage):
    name = "release"
    inputs = ("explain",)

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        return ()


@pytest.fixture
def context(tiny_study: Callable[..., Study], tmp_path: Path) -> Callable[..., RunContext]:
    def make(**sections: Any) -> RunContext:
        nothing: Any = None
        cases = StudyCases(tiny_study(**sections), (), tmp_path, "", ())
        return RunContext(cases, RunFolder(tmp_path / "run", False), nothing, SilentReporter(), tmp_path, ())

    return make


def test_a_stage_runs_again_where_key_or_files_changed(context: Callable[..., RunContext]) -> None:
    stage = CountingStage()
    folder = context().folder.path
    for change, sections, expected in (
        ("", {}, 1),
        ("", {}, 1),
        ("", {"question": "Other words?", "domain": {"margin": 3}}, 1),  # it does not read them
        ("", {"evaluation": {"explain": 3}}, 2),
        ("more", {"evaluation": {"explain": 3}}, 3),
        ("output.txt", {"evaluation": {"explain": 3}}, 4),
        ("stages/explain.json", {"evaluation": {"explain": 3}}, 5),
    ):
        if change == "more":
            stage.more = 1
        elif change:
            (folder / change).write_text("{ cut")
        run = context(**sections)
        stage.complete(run)
        assert run.result(CountingStage).calls == stage.calls == expected, change
        assert math.isnan(run.result(CountingStage).loss)
    assert list(run.folder.seconds()) == ["explain"]


def test_a_stage_takes_the_results_before_it(context: Callable[..., RunContext]) -> None:
    run, first, later = context(), CountingStage(), LaterStage()
    with pytest.raises(RuntimeError, match="takes the result of explain"):
        later.complete(run)
    for expected in (1, 1, 2):
        if expected == 2:
            first.more = 1  # it comes to another result, so the later one is due, too
        run = context()
        first.complete(run)
        later.complete(run)
        assert later.calls == expected


def test_a_new_revision_runs_again(context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch) -> None:
    stage = CountingStage()
    stage.complete(context())
    monkeypatch.setattr(CountingStage, "revision", 2)
    stage.complete(context())
    assert stage.calls == 2


def test_every_setting_is_read_by_a_stage_and_every_stage_reads_settings_that_exist(
    tiny_study: Callable[..., Study],
) -> None:
    study = tiny_study(compression={"pruning": {"target": 0.5, "steps": 2}}, training={"batch_size": "auto"})
    names = stage_names(study)
    assert names[:5] == ("tune", "baseline", "train", "pruned-1", "pruned-2") and names[-3:] == (
        "release",
        "report",
        "record",
    )
    assert len({settings_digest(study, name) for name in ("train", "compress", "judge", "domain")}) == 4
    named = tiny_study(prepare={"channels": ["t1", "t2"]})
    for name in ("train", "judge", "robustness", "explain", "domain", "release"):  # what takes images
        assert settings_digest(named, name) != settings_digest(study, name)
    paths = {path for name, reads in READS.items() if name not in ("report", "record") for path in reads}
    values = study.model_dump(exclude={"data": {"manifest"}})
    unread = [
        f"{section}.{key}"
        for section, keys in values.items()
        if isinstance(keys, dict) and section not in paths
        for key in keys
        if f"{section}.{key}" not in paths
    ]
    assert unread == []


def test_more_draws_repeat_only_the_stages_that_draw(tiny_study: Callable[..., Study]) -> None:
    """The intervals of robustness are DeLong's, which take the confidence and no draws."""
    study, more, wider = (tiny_study(evaluation=one) for one in ({}, {"bootstrap": 777}, {"confidence": 0.9}))
    analyses = ("judge", "evaluate", "robustness", "explain", "domain")
    changed = [[one for one in analyses if settings_digest(study, one) != settings_digest(other, one)]
               for other in (more, wider)]  # fmt: skip
    assert changed == [["judge", "evaluate"], ["judge", "evaluate", "robustness", "domain"]]

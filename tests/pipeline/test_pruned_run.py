"""A run whose int8 model is pruned: its steps, what it says of them, and that a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from clinic import STUDY, Clinic, write_study
from clinic_fixtures import Done, call, only_folder
from mlflow import MlflowClient

from medopt.compression.prune import multiply_adds
from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.reporter import SilentReporter
from medopt.models import build_model
from medopt.models.channel_widths import Widths
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import RunContext, complete
from medopt.pipeline.stages import prune
from medopt.pipeline.stages.prepare import PreparedSplits
from medopt.pipeline.stages.prune import PruningStep, pruning_stages, steps_to
from medopt.pipeline.study_cases import StudyCases
from medopt.training import loop
from medopt.training.checkpoint import read_tensors, write_tensors
from medopt.training.job import PreparedSplit
from medopt.training.loop import load_best


class Killed(BaseException):
    """What no `except Exception` stops."""


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[tuple[str, str]] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, note: str) -> None:
        self.stages.append((name, note))


@dataclass(frozen=True, slots=True)
class Step:
    """What a stage came to, and its weights."""

    weights: Path
    result: PruningStep


class Steps:
    """A tiny network that was not trained, and its pruning, in folders by name."""

    def __init__(self, folder: Path, study: Study, tiny_set: Callable[..., PreparedSplit]) -> None:
        self.study, self.folder, self.weights = study, folder, folder / "whole.safetensors"
        splits = {split: tiny_set(folder / "data", study, 12, split) for split in ("train", "val")}
        self.prepared = PreparedSplits(splits, "chain", "content", ())  # type: ignore[arg-type]
        write_tensors(self.weights, build_model(study).state_dict(), {})

    def run(self, name: str, targets: tuple[float, ...] = (0.3, 0.6), **options: Any) -> tuple[list[Step], Listener]:
        listener, place, study = Listener(), RunFolder(self.folder / name, False), options.get("study", self.study)
        cases = StudyCases(study, (), self.folder, "", ())
        nothing: Any = None
        context = RunContext(cases, place, nothing, listener, self.folder, (self.weights,))
        context.results["prepare"], context.digests["prepare"] = self.prepared, "content"
        stages = pruning_stages(targets)
        complete(stages, context)
        return [Step(stage.weights(place), context.results[stage.name]) for stage in stages], listener


@pytest.fixture(scope="module")
def steps(
    tmp_path_factory: pytest.TempPathFactory, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Steps:
    study = tiny_study(training={"ema_decay": 0.5}, compression={"pruning": {"target": 0.6, "steps": 2, "epochs": 2}})
    return Steps(tmp_path_factory.mktemp("steps"), study, tiny_set)


@pytest.fixture(scope="module")
def whole(steps: Steps) -> tuple[list[Step], Listener]:
    return steps.run("whole")


def left(study: Study, weights: Path) -> float:
    """The share of the multiply-adds of the whole network."""
    counts = [multiply_adds(net, 1, study.prepare.size) for net in (load_best(study, weights), build_model(study))]
    return counts[0] / counts[1]


def test_each_step_takes_the_same_share_of_what_is_left() -> None:
    shares = steps_to(0.75, 4)
    assert len(shares) == 4 and shares[-1] == 0.75
    left = [1, *(1 - share for share in shares)]
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), 0.25**0.25)


def test_every_step_is_narrower_and_trained_on_from_the_one_before(
    steps: Steps, whole: tuple[list[Step], Listener]
) -> None:
    done, listener = whole
    shares = [left(steps.study, step.weights) for step in done]
    assert 0.6 < shares[0] <= 0.7 and 0.3 < shares[1] <= 0.4
    for number, step in enumerate(done, start=1):
        notes = read_tensors(step.weights)[1]
        assert json.loads(notes["widths"]) == step.result.widths.model_dump(mode="json")
        assert step.result.multiply_adds.share == pytest.approx(shares[number - 1])
        (start, _), (tuned, _) = (
            read_tensors(step.weights.with_name(n)) for n in ("start.safetensors", "best.safetensors")
        )
        assert any(not torch.equal(start[name], tuned[name]) for name in start)
        assert step.result.epochs == 2
    assert done[0].result.validation_auc.tuned == done[1].result.validation_auc.before
    assert len([line for line in listener.said if "of the multiply-adds; validation AUC" in line]) == 2
    again, listener = steps.run("whole")
    assert again == done and listener.said == []
    assert listener.stages == [("pruned-1", "unchanged, skipped"), ("pruned-2", "unchanged, skipped")]


@pytest.mark.parametrize(("moment", "epochs"), [("cut", 0), ("second step", 3)])
def test_a_killed_pruning_ends_with_the_same_bits_and_trains_no_epoch_twice(
    steps: Steps,
    whole: tuple[list[Step], Listener],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    epochs: int,
) -> None:
    saved, original = 0, loop.save_epoch

    def counting(*args: Any, **options: Any) -> None:
        nonlocal saved
        original(*args, **options)
        saved += 1
        if saved == epochs:
            raise Killed

    def dying(*_args: Any) -> None:
        raise Killed

    monkeypatch.setattr(loop, "save_epoch", counting)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "cut":
            patch.setattr(prune, "train", dying)
        steps.run(moment)
    resumed, _ = steps.run(moment)
    assert [step.weights.read_bytes() for step in resumed] == [step.weights.read_bytes() for step in whole[0]]
    assert saved == 4


def test_other_weights_and_settings_are_pruned_anew(
    tmp_path: Path, steps: Steps, tiny_set: Callable[..., PreparedSplit]
) -> None:
    changed = steps.study.compression.pruning.model_copy(update={"epochs": 1})
    study = steps.study.model_copy(
        update={"compression": steps.study.compression.model_copy(update={"pruning": changed})}
    )
    others = Steps(tmp_path, study, tiny_set)
    first, _ = others.run("one", (0.3,))
    write_tensors(others.weights, build_model(study.model_copy(update={"seed": 5})).state_dict(), {})
    second, listener = others.run("one", (0.3,))
    assert listener.stages == [("pruned-1", "")] and first[0].result.weights != second[0].result.weights
    third, _ = others.run("one", (0.3,), study=steps.study)
    assert [step[0].result.epochs for step in (first, second, third)] == [1, 1, 2]


def test_a_target_that_cannot_be_reached_is_refused(steps: Steps) -> None:
    with pytest.raises(ConfigError, match=r"of the multiply-adds cannot go.*compression.pruning.target"):
        steps.run("too much", (0.99,))


@dataclass(frozen=True, slots=True)
class PrunedRun:
    done: Done
    runs: Path

    @property
    def folder(self) -> Path:
        return only_folder(self.runs, "pruned")


@pytest.fixture(scope="module")
def run(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> PrunedRun:
    base = tmp_path_factory.mktemp("pruned")
    compression = STUDY["compression"] | {"engines": ["onnxruntime"]}
    compression |= {"pruning": {"target": 0.5, "steps": 2, "epochs": 1}}
    changed = {"name": "pruned", "compression": compression, "evaluation": {"bootstrap": 100, "shift_cases": 0}}
    changed["evaluation"] |= {"explain": 0}
    changed |= {"domain": {"enabled": False}}
    changed |= {"data": STUDY["data"] | {"manifest": str(clinic.data / "manifest.csv")}}
    changed |= {"training": STUDY["training"] | {"epochs": 6}, "prepare": STUDY["prepare"] | {"size": [16, 16]}}
    words = ("run", write_study(base, STUDY | changed), "--data", clinic.data, "--runs", base / "runs", "--json")
    done = call(*words)
    assert done.code == 0, done.stderr
    return PrunedRun(done, base / "runs")


def test_the_int8_model_is_narrow_and_the_float_model_as_trained(run: PrunedRun) -> None:
    shapes = {}
    for kind in ("float", "pruned"):
        model = onnx.load(run.folder / "models" / f"{kind}.onnx")
        shapes[kind] = [list(item.dims) for item in model.graph.initializer if len(item.dims) == 4]
    int8 = onnx.load(run.folder / "models" / "int8.onnx")
    assert sum(np.prod(shape) for shape in shapes["pruned"]) < 0.8 * sum(np.prod(shape) for shape in shapes["float"])
    narrow = [list(item.dims) for item in int8.graph.initializer if len(item.dims) == 4]
    assert sorted(narrow) == sorted(shapes["pruned"])


def test_the_stages_and_figures_of_the_steps_are_told(run: PrunedRun) -> None:
    summary = run.done.summary
    assert list(summary["stages"])[:5] == ["baseline", "train", "pruned-1", "pruned-2", "compress"]
    last = summary["pruning"]["step-2"]
    assert 0.4 < last["multiply_adds"]["share"] <= 0.5
    assert "of the multiply-adds; validation AUC" in run.done.stderr
    client = MlflowClient(f"sqlite:///{run.runs / 'mlflow.db'}")
    logged = client.get_run(summary["mlflow_run_id"]).data.metrics
    assert logged["pruning step-2_multiply_adds/pruned"] == last["multiply_adds"]["pruned"]
    widths = Widths.from_json(json.dumps(last["widths"]))
    assert min(widths.by_group().values()) >= 4


def test_report_and_card_say_that_it_is_pruned(run: PrunedRun) -> None:
    share = f"{100 * run.done.summary['pruning']['step-2']['multiply_adds']['share']:.0f} %"
    for path in (run.folder / "report.html", run.folder / "release" / "CARD.md"):
        text = path.read_text(encoding="utf-8")
        assert "pruned" in text and f"{share} of the " in text and "multiply-adds" in text, path

"""Covariates in the network: of every task, in a step, in evaluation, in pruning, distillation and a start's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from medopt.compression.prune import gradient_scores
from medopt.config import Study
from medopt.core.covariates import CovariateTerm, CovariateTerms
from medopt.core.records import Case, Task
from medopt.data.loaders import KeyedDataset, target_of
from medopt.evaluation.covariate_effects import effects_of
from medopt.manifest.covariates import encoder_of, with_covariates
from medopt.models import build_model
from medopt.models.resnet import with_table
from medopt.training.checkpoint import write_tensors
from medopt.training.covariates import fit_table, put_coefficients, term_of
from medopt.training.epoch import predict_logits
from medopt.training.features import put_head
from medopt.training.fine_tuning import stage_of
from medopt.training.hardware import open_fabric
from medopt.training.linear_model import LinearModel
from medopt.training.loop import load_best
from medopt.training.losses import Teacher, build_loss
from medopt.training.step import Stepper, start_state

TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel", "ordinal", "regression")


def study_and_cases(task: Task, count: int = 60) -> tuple[Study, list[Case]]:
    """A marker that tells the label, in noise, and a group that tells nothing."""
    random = np.random.default_rng(3)
    data: dict[str, Any] = {"manifest": "m.csv", "task": task, "covariates": ["marker", "group"]}
    if task != "regression":
        data["labels"] = ["a", "b"] if task == "binary" else ["a", "b", "c"]
    else:
        data["number"] = {"column": "size", "threshold": 50, "spread": 10}
    study = Study.model_validate(
        {"name": "s", "question": "?", "data": data, "prepare": {"size": [16, 16]},
         "model": {"depth": 14, "width": 0.125, "stem": "small"}, "training": {"batch_size": 8, "ema_decay": 0}}
    )  # fmt: skip
    cases = []
    for at in range(count):
        grade = int(random.integers(2 if task in ("binary", "regression") else 3))
        label = (grade,) if task != "multilabel" else tuple(int(grade > k) for k in range(3))
        marker = grade + 0.4 * random.standard_normal()
        cases.append(
            Case(f"c{at}", f"p{at}", f"{at}.png", label, ("train", "val")[at % 2],  # type: ignore[arg-type]
                 number=50 + 20.0 * marker if task == "regression" else None,
                 covariates=(f"{marker:.3f}", "xy"[at % 4 // 2]))
        )  # fmt: skip
    return with_covariates(study, cases), cases


def batch_of(study: Study, cases: list[Case]) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = encoder_of(study)
    assert encoder is not None
    targets = torch.stack([target_of(study, case) for case in cases])
    images = torch.rand(len(cases), 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return images, torch.cat([targets, torch.from_numpy(encoder.table(cases)).float()], dim=1)


@pytest.mark.parametrize("task", TASKS)
def test_the_table_alone_is_fitted_for_every_task(task: Task) -> None:
    study, cases = study_and_cases(task)
    train, val = ([case for case in cases if case.split == split] for split in ("train", "val"))
    linear = fit_table(study, train, val)
    encoder = encoder_of(study)
    assert encoder is not None and encoder.names == ["marker", "group x", "group y"]
    logits = linear.logits(encoder.table(val))
    score = logits[:, -1] - (logits[:, 0] if logits.shape[1] > 1 and task != "multilabel" else 0)
    marker = [float(case.covariates[0]) for case in val]
    told = logits[:, 0] if task == "multilabel" else score
    assert np.corrcoef(told, marker)[0, 1] > 0.9 and logits.shape == (len(val), study.data.outputs)


@pytest.mark.parametrize("task", TASKS)
def test_a_step_learns_the_coefficients_and_evaluation_sees_the_sum(task: Task) -> None:
    study, cases = study_and_cases(task)
    fabric = open_fabric(study.training)
    state = start_state(study, fabric)
    stepper = Stepper(study, fabric, state, build_loss(study, cases))
    images, both = batch_of(study, cases[:12])
    before = state.model.get_parameter("covariates").detach().clone()
    assert before.shape == (3, study.data.outputs) and not before.any()
    stepper.step([(images[:6], both[:6]), (images[6:], both[6:])], 0.01)
    after = state.model.get_parameter("covariates").detach()
    assert (after != before).any()
    put_coefficients(state.model, np.arange(3.0 * study.data.outputs).reshape(study.data.outputs, 3))
    logits, targets = predict_logits(state.model, [(images, both, torch.arange(12))], torch.device("cpu"))
    table = both[:, study.data.outputs :].double().numpy()
    with torch.no_grad():
        alone = state.model.eval()(images).double().numpy()
    coefficients = np.arange(3.0 * study.data.outputs).reshape(study.data.outputs, 3).T
    assert logits == pytest.approx(alone + table @ coefficients, abs=1e-4)
    assert targets.shape == (12, study.data.outputs)


def test_the_targets_of_a_loader_hold_the_covariates_behind_the_labels() -> None:
    study, cases = study_and_cases("binary")
    data = KeyedDataset(study, cases, None, changes=False)
    _, targets, _, _ = cast(Any, data.__getitems__([(-1, 3, 0), (-1, 4, 0)]))
    encoder = encoder_of(study)
    assert encoder is not None and targets.shape == (2, 4)
    assert targets[:, 1:].numpy() == pytest.approx(encoder.table(cases[3:5]), abs=1e-6)
    plain = study.model_copy(update={"data": study.data.model_copy(update={"covariates": []})})
    _, targets, _, _ = cast(Any, KeyedDataset(plain, cases, None, changes=False).__getitems__([(-1, 3, 0)]))
    assert targets.shape == (1, 1)


def test_a_network_without_covariates_is_what_it_was() -> None:
    study, _ = study_and_cases("binary")
    plain = study.model_copy(update={"data": study.data.model_copy(update={"covariates": []})})
    network, beside = build_model(plain), build_model(study)
    assert "covariates" not in network.state_dict()
    images, target = torch.rand(2, 1, 16, 16), torch.ones(2, 1)
    assert with_table(network, target) == (target, ())
    assert torch.equal(network.eval()(images), beside.eval()(images))


def test_pruning_and_a_teacher_see_the_sum() -> None:
    study, cases = study_and_cases("binary")
    network = build_model(study).eval()
    nn.init.normal_(network.get_parameter("covariates"))
    images, both = batch_of(study, cases[:4])
    loss = build_loss(study, cases)
    scores = gradient_scores(network, [(images, both)], loss)
    assert all(torch.isfinite(one).all() for one in scores.values())
    goal, table = with_table(network, both)
    answers = Teacher([network], 0.5, loss, task="binary").answers(images, goal, *table)
    with torch.no_grad():
        assert torch.allclose(answers, (network(images) + table[0] @ network.get_parameter("covariates")).sigmoid())


def test_a_starts_head_takes_its_part_and_the_covariates_theirs(tmp_path: Path) -> None:
    study, _ = study_and_cases("binary")
    network = build_model(study)
    width = cast(nn.Linear, network.fc).in_features
    weight = np.arange(width + 3.0)[None]
    put_head(network, LinearModel(weight, np.array([0.5]), 1.0))
    assert cast(nn.Linear, network.fc).weight.detach().numpy() == pytest.approx(weight[:, :width])
    write_tensors(tmp_path / "w.safetensors", network.state_dict(), {})
    term = term_of(study, tmp_path / "w.safetensors")
    assert term is not None and term.names == ("marker", "group x", "group y")
    assert [row[0] for row in term.weights] == pytest.approx(weight[0, width:])
    again = load_best(study, tmp_path / "w.safetensors")
    assert torch.equal(again.get_parameter("covariates"), network.get_parameter("covariates"))
    assert stage_of("covariates") == stage_of("fc.weight")


def test_an_ensembles_term_is_the_mean_of_its_members() -> None:
    terms = [CovariateTerm.of(["a", "b"], np.array([[value], [2 * value]])) for value in (1.0, 3.0)]
    both = CovariateTerms.mean([CovariateTerms(float=one, int8=one) for one in terms])
    rows = np.array([[1.0, 2.0], [0.0, -1.0]])
    assert both.int8.logits(rows) == pytest.approx(np.mean([term.logits(rows) for term in terms], axis=0))
    with pytest.raises(ValueError, match="a row for each name"):
        CovariateTerm(names=("a",), weights=((1.0,), (2.0,)))


def test_effects_are_told_against_a_reference() -> None:
    study, _ = study_and_cases("binary")
    covariates = study.data.covariates
    term = CovariateTerm.of(["marker", "group x", "group y"], np.array([[np.log(3)], [0.5], [0.5 + np.log(2)]]))
    first, second = effects_of(covariates, term, "binary")
    assert first.change.startswith("marker: ") and first.effects == ("3",)
    assert (second.change, second.effects) == ("group: y instead of x", ("2",))
    number, _ = study_and_cases("regression")
    told = effects_of(number.data.covariates, term, "regression", number.number_scale)
    assert told[0].effects == ("10.99",) and told[1].effects == ("6.931",), told

"""A release answers as the run did, for every kind of question, and its card says what was measured."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinic_fixtures import Finished
from numpy.typing import NDArray
from results import both, figures, gate

from medopt.core.errors import DataError, ReleaseError
from medopt.core.format import format_estimate
from medopt.core.records import KINDS, Estimate, FloatArray, Kind, Override
from medopt.core.run_paths import find_release
from medopt.evaluation.run_metrics import RunMetrics
from medopt.imaging import read_scan
from medopt.metrics.calibration import UNCALIBRATED, Calibration, IsotonicCurve
from medopt.metrics.conformal import PredictionSets
from medopt.pacs.result_objects import ScanAnswer
from medopt.release.card import MISSING, ModelCard, card_of, render_card
from medopt.release.layout import ModelInfo, ReleaseInfo, read_info
from medopt.release.predictor import Release, load_release
from medopt.serving.server.try_page import rule_of
from medopt.transforms.prepare import PrepareChain


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_probabilities_are_those_of_the_predictions_table(finished: Finished, kind: Kind) -> None:
    """The same scans, read anew from DICOM through the release alone."""
    with (finished.folder / "manifest.csv").open(newline="") as stream:
        images = {row["case_id"]: row["image"] for row in csv.DictReader(stream)}
    with (finished.folder / "predictions.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] == kind]
    assert len(rows) == 36
    predictor = Release.open(finished.release, kind, threads=1)
    threshold = finished.metrics["operating_point"][kind]["threshold"]
    declined = 0
    for row in rows:
        answer = predictor.predict(finished.clinic.data / "scans" / images[row["case_id"]])
        probability = float(row["probability"])
        assert answer.probabilities["blob"] == pytest.approx(probability, abs=1e-6)
        assert answer.probabilities["clear"] == pytest.approx(1 - probability, abs=1e-6)
        assert answer.logits == pytest.approx([float(row["logit"])], abs=1e-5)
        decision = "blob" if probability >= threshold else "clear"
        assert answer.decision == ("" if answer.declined else decision)
        declined += bool(answer.declined)
    assert declined <= 6  # the gate's limits are the farthest of 18 validation images


def test_both_engines_answer_alike_and_a_batch_as_its_scans(finished: Finished) -> None:
    paths = [finished.clinic.data / "scans" / f"{index:03d}.dcm" for index in range(6)]
    for engine in ("onnxruntime", "openvino"):
        predictor = Release.open(finished.release, "float", engine, threads=1)
        batch = np.stack([predictor.chain(path).numpy() for path in paths])
        singly = [predictor.predict(read_scan(path)).probabilities["blob"] for path in paths]
        together = [answer.probabilities["blob"] for answer in predictor.predict_batch(batch)]
        assert together == pytest.approx(singly, abs=1e-5)
        if engine == "onnxruntime":
            first = singly
    assert singly == pytest.approx(first, abs=1e-4)


@dataclass(slots=True)
class Fixed:
    """An engine that answers with given logits."""

    logits: NDArray[np.float64]
    name: str = "fixed"

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        return np.tile(self.logits, (len(batch), 1))


HALVED = Calibration("temperature", 2.0)


def with_logits(info: ReleaseInfo, logits: list[float], **model: Any) -> Release:
    changed = info.models["int8"].model_copy(update=model)
    info = info.model_copy(update={"models": {"int8": changed, "float": changed}})
    return Release(info, "int8", PrepareChain(info.prepare), Fixed(np.array(logits)))


@pytest.fixture
def info(finished: Finished) -> ReleaseInfo:
    return read_info(finished.release)


IMAGE = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(1, 1, 32, 32)


@pytest.mark.parametrize(("threshold", "decision"), [(0.73, "blob"), (0.74, "clear")])
def test_binary_answer(info: ReleaseInfo, threshold: float, decision: str) -> None:
    (answer,) = with_logits(info, [2.0], calibration=HALVED, threshold=threshold).predict_batch(IMAGE)
    assert answer.probabilities == pytest.approx({"clear": 0.26894142, "blob": 0.73105858})
    assert (answer.decision, answer.logits) == (decision, (2.0,))


@pytest.mark.parametrize(("logit", "decision"), [(0.5, "undecided"), (2.0, "blob"), (-1.0, "clear")])
def test_a_case_in_the_band_is_undecided(info: ReleaseInfo, logit: float, decision: str) -> None:
    (answer,) = with_logits(info, [logit], calibration=UNCALIBRATED, threshold=0.5, band=(0.3, 0.7)).predict_batch(
        IMAGE
    )
    assert answer.decision == decision


SETS = PredictionSets(0.9, (0.3, 0.3, 0.6, 0.3, 0.3, 0.6), (50,) * 6)


@pytest.mark.parametrize(
    ("logits", "decision"),
    [
        ([2.0, -2.0, 2.0], "a;c"),
        ([0.0, -2.0, 2.0], "undecided:a;c"),
        ([-2.0, -2.0, 0.0], "undecided:c"),
        ([-2.0] * 3, ""),
    ],
)
def test_a_label_with_both_or_none_possible_is_undecided(info: ReleaseInfo, logits: list[float], decision: str) -> None:
    several = info.model_copy(update={"task": "multilabel", "labels": ["a", "b", "c"]})
    opened = with_logits(several, logits, calibration=UNCALIBRATED, threshold=(0.5,) * 3, sets=SETS)
    (answer,) = opened.predict_batch(IMAGE)
    assert answer.decision == decision
    left = [label for label in "abc" if answer.is_undecided(label)]
    assert left == [one.removeprefix("undecided:") for one in decision.split(";") if one.startswith("undecided")]
    scan = ScanAnswer(answer, ())
    assert [scan.presence(label) == "Undetermined" for label in "abc"] == [label in left for label in "abc"]


@pytest.mark.parametrize(("logits", "decision"), [([3.0, 0.0, 0.0], "a"), ([1.0, 1.1, 0.0], "undecided")])
def test_a_case_of_which_several_classes_are_possible_is_undecided(
    info: ReleaseInfo, logits: list[float], decision: str
) -> None:
    three = info.model_copy(update={"task": "multiclass", "labels": ["a", "b", "c"]})
    sets = PredictionSets(0.9, (0.3, 0.3, 0.3), (50, 50, 8))
    opened = with_logits(three, logits, calibration=UNCALIBRATED, threshold=None, sets=sets)
    (answer,) = opened.predict_batch(IMAGE)
    assert answer.decision == decision
    text = render_card(card_of(opened.info))
    assert "at least 90 % have their images answered" in text and "a from 0.300 on (50 validation patients)" in text
    assert "No guarantee is possible for 1 of 3 classes" in text
    assert "The case is left undecided where another label is possible too" in rule_of(
        opened.info, opened.info.models["int8"]
    )
    again = ReleaseInfo.model_validate_json(opened.info.model_dump_json())
    assert again.models["int8"].operating_point.sets == sets


def test_an_isotonic_release_answers_by_its_curve(info: ReleaseInfo) -> None:
    rising = Calibration("isotonic", curves=(IsotonicCurve((0.0, 4.0), (0.1, 0.5)),))
    model = info.models["int8"].model_copy(update={"calibration": rising, "threshold": 0.3})
    model = ModelInfo.model_validate_json(model.model_dump_json())
    assert model.calibration == rising
    (answer,) = with_logits(info, [2.0], calibration=model.calibration, threshold=0.3).predict_batch(IMAGE)
    assert (answer.probabilities, answer.decision) == (pytest.approx({"clear": 0.7, "blob": 0.3}), "blob")


def test_multiclass_answer(info: ReleaseInfo) -> None:
    three = info.model_copy(update={"task": "multiclass", "labels": ["a", "b", "c"]})
    (answer,) = with_logits(three, [0.0, np.log(9), np.log(4)], calibration=HALVED, threshold=None).predict_batch(IMAGE)
    assert answer.probabilities == pytest.approx({"a": 1 / 6, "b": 3 / 6, "c": 2 / 6})  # square roots of 1, 9 and 4
    assert answer.decision == "b"


@pytest.mark.parametrize(
    ("thresholds", "decision"), [((0.4, 0.4, 0.4), "a;c"), ((0.6, 0.1, 0.9), "b"), ((0.9, 0.9, 0.9), "")]
)
def test_multilabel_answer(info: ReleaseInfo, thresholds: tuple[float, ...], decision: str) -> None:
    several = info.model_copy(update={"task": "multilabel", "labels": ["a", "b", "c"]})
    logits = [0.0, -np.log(3), np.log(3)]
    (answer,) = with_logits(several, logits, calibration=UNCALIBRATED, threshold=thresholds).predict_batch(IMAGE)
    assert answer.probabilities == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.75})
    assert answer.decision == decision


def test_logit_that_is_not_a_number_is_no_answer(info: ReleaseInfo) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        with_logits(info, [float("nan")]).predict_batch(IMAGE)


def test_release_json_says_what_the_run_found(finished: Finished, info: ReleaseInfo) -> None:
    metrics = RunMetrics.read(finished.folder)
    assert (info.task, info.labels, info.study) == ("binary", ["clear", "blob"], "clinic")
    for kind in KINDS:
        assert info.models[kind].calibration == metrics.calibration[kind].calibration
        assert info.models[kind].threshold == metrics.operating_point[kind].threshold
        assert info.models[kind].engines[0] == metrics.engine[kind]
    assert info.models["int8"].engines == list(metrics.gate.figures.engines_passed)
    assert info.figures == metrics.for_release() and info.gate == metrics.gate
    assert info.provenance.mlflow_run_id == metrics.mlflow_run_id


def test_card_holds_the_figures(finished: Finished, info: ReleaseInfo) -> None:
    card, metrics = (finished.release / "CARD.md").read_text(), RunMetrics.read(finished.folder)
    for name in ("auc", "average_precision", "accuracy", "sensitivity", "specificity", "brier"):
        cells = [format_estimate(metrics.test[kind][name]) for kind in KINDS]
        assert f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |" in card
    for site, found in metrics.sites.items():
        assert f"| {site} | {format_estimate(found.int8.auc)} | {found.int8.auc.n} |" in card
    assert f"temperature {metrics.calibration.int8.temperature:.4g}" in card
    for words in (info.chain_fingerprint, str(metrics.mlflow_run_id), info.question, "clear, blob (binary)", "passed"):
        assert words in card


def test_card_says_where_a_figure_is_not_defined(info: ReleaseInfo) -> None:
    sites = {
        "hill": both(figures(0.9, auc=Estimate(None, None, None, 4, "one class only"))),
        "lake": both(figures(0.9, auc=Estimate(0.5, None, None, 4))),
    }
    changed = info.figures.model_copy(update={"sites": sites, "confidence": 0.9, "guarantee": None})
    card = render_card(card_of(info.model_copy(update={"figures": changed})))
    assert "| hill | not defined (one class only) | 4 |" in card
    assert "| lake | 0.500 | 4 |" in card
    assert "90 % interval" in card and "95 %" not in card.split("## Where it is weak")[0]


def test_the_intended_use_is_never_guessed(finished: Finished, info: ReleaseInfo) -> None:
    card = ModelCard.read(finished.release / "card.json")
    assert card == card_of(info)
    assert card.intended_use == MISSING and MISSING in (finished.release / "CARD.md").read_text()
    stated = card_of(info.model_copy(update={"intended_use": "Second reader of screening radiographs"}))
    assert "**Intended use**: Second reader of screening radiographs." in render_card(stated)


@pytest.mark.parametrize(
    ("undecided", "said"), [(True, "cannot tell whether int8 may be used"), (False, "refused this")]
)
def test_the_card_of_an_overridden_gate_claims_no_engine_that_passed(
    info: ReleaseInfo, undecided: bool, said: str
) -> None:
    assert "- Engines that passed the gate: " in render_card(card_of(info))
    somebody = Override("Dr. Winter", "for a reader study", "2026-11-23T12:00:00+00:00")
    card = render_card(card_of(info.model_copy(update={"gate": gate(False, somebody, undecided=undecided)})))
    assert f"**The gate {said}" in card and "passed the gate" not in card
    assert f"- Engine that was judged: {', '.join(info.models['int8'].engines)}." in card
    assert "- Layers in float: 1; with all layers in int8 the gate did not pass it." in card


def test_the_card_tells_where_the_model_is_weak(finished: Finished) -> None:
    card, metrics = (finished.release / "CARD.md").read_text(), RunMetrics.read(finished.folder)
    assert metrics.robustness is not None and metrics.calibration.int8.after is not None
    worse = metrics.robustness.int8
    assert f"AUC {format_estimate(worse.mean)}, {format_estimate(worse.drop)} lower" in card
    assert f"calibration error on test: {metrics.calibration.int8.after.ece:.3f}" in card
    assert "TRIPOD+AI" in card and "CLAIM" in card


def test_a_release_is_found_in_its_run_and_its_study(finished: Finished) -> None:
    study = finished.folder.parent
    for path in (finished.release, str(finished.release), finished.folder, str(study)):
        assert find_release(path) == finished.release
    scan = sorted((finished.clinic.data / "scans").glob("*.dcm"))[0]
    answers = [load_release(path, threads=1).predict(scan) for path in (str(study), finished.release)]
    assert answers[0] == answers[1] == Release.open(finished.release, threads=1).predict(str(scan))
    assert answers[0].declined is None or answers[0].decision == ""
    assert load_release(study, "float", "openvino").engine.name == "openvino"


def test_a_run_without_a_release_is_refused_even_where_an_older_one_has_it(tmp_path: Path) -> None:
    for run in ("20260101-120000-aaaaaaaa", "20260102-120000-bbbbbbbb"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.json").touch()
    older, newest = sorted(tmp_path.iterdir())
    (older / "release").mkdir()
    (older / "release" / "release.json").touch()
    assert find_release(older) == older / "release"
    for path in (tmp_path, newest):
        with pytest.raises(ReleaseError, match="20260102-120000-bbbbbbbb has no release"):
            load_release(path)
    with pytest.raises(ReleaseError, match=r"There is no release .*nowhere"):
        load_release(str(tmp_path / "nowhere"))
    (newest / "metrics.json").unlink()
    with pytest.raises(ReleaseError, match=r"is not a release: it holds neither release.json nor runs"):
        load_release(str(newest))

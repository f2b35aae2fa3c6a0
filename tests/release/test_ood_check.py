"""The gate before the answer: its distances are the textbook's, its limits keep their promise, its reasons are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinic_fixtures import Finished
from scipy.spatial.distance import mahalanobis

from medopt.config import Study
from medopt.core.errors import ReleaseError
from medopt.core.records import FloatArray, Volume
from medopt.imaging import read_scan
from medopt.imaging.acquisition import Acquisition
from medopt.pipeline.stages.ood_check import alterations
from medopt.release.ood_check import (
    DIRECTIONS,
    HeaderRules,
    OutOfDomainCheck,
    blank,
    fit_distance,
    fit_rules,
    texture,
)
from medopt.release.predictor import Release


def rows(count: int, width: int, seed: int) -> np.ndarray:
    """Gaussian rows with a spectrum that falls off and a mean of their own."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) * np.linspace(2, 0.5, width)
    return random.normal(size=(count, width)) @ mixing.T + 5


def test_few_figures_give_the_mahalanobis_distance() -> None:
    train, new = rows(400, 4, 0), rows(7, 4, 1)
    fitted = fit_distance(train, [rows(50, 4, 2)], 0.05)
    inverse = np.linalg.inv(np.cov(train.T))
    wanted = [mahalanobis(row, train.mean(axis=0), inverse) ** 2 for row in new]
    assert fitted.rest is None
    assert fitted.of(new) == pytest.approx(wanted, rel=1e-3)


def test_many_figures_give_the_distance_of_probabilistic_pca() -> None:
    """The same as with the whole covariance matrix of Tipping & Bishop's model, inverted."""
    train, new = rows(150, 60, 0), rows(5, 60, 1)
    fitted = fit_distance(train, [rows(50, 60, 2)], 0.05)
    values, vectors = np.linalg.eigh(np.cov(train.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    spread = np.where(np.arange(60) < DIRECTIONS, values, values[DIRECTIONS:].mean())
    inverse = vectors @ np.diag(1 / spread) @ vectors.T
    wanted = [mahalanobis(row, train.mean(axis=0), inverse) ** 2 for row in new]
    assert fitted.of(new) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("wanted", [0.05, 0.2])
def test_new_cases_of_the_same_kind_are_declined_as_often_as_said(wanted: float) -> None:
    shares = []
    for seed in range(20):
        fitted = fit_distance(rows(100, 30, 3 * seed), [rows(80, 30, 3 * seed + 1)], wanted)
        shares.append((fitted.of(rows(2000, 30, 3 * seed + 2)) > fitted.threshold).mean())
    assert 0.5 * wanted < np.mean(shares) <= 1.15 * wanted


def test_few_validation_cases_take_the_farthest_and_dead_figures_do_no_harm() -> None:
    train, val = rows(40, 6, 0), rows(9, 6, 1)
    train[:, 2] = val[:, 2] = 1.0  # as a unit that never fires
    fitted = fit_distance(train, [val], 0.05)
    assert fitted.threshold == pytest.approx(fitted.of(val).max())
    assert np.isfinite(fitted.of(val)).all()
    fired = val.copy()
    fired[:, 2] = 50.0
    assert (fitted.of(fired) > fitted.threshold).all()
    assert fitted.of(np.full((1, 6), np.nan)) == np.inf
    alone = fit_distance(train[:1], [val[:1]], 0.05)  # one image is no distribution, and no crash either
    assert np.isfinite(alone.threshold)


def test_no_engine_declines_more_than_said() -> None:
    train, val = rows(100, 6, 0), rows(60, 6, 1)
    farther = 1.2 * (val - train.mean(axis=0)) + train.mean(axis=0)
    both = fit_distance(train, [val, farther], 0.1)
    assert both.threshold == fit_distance(train, [farther], 0.1).threshold
    assert both.threshold > fit_distance(train, [val], 0.1).threshold


@pytest.mark.parametrize("size", [(32, 48), (31, 45), (8, 8), (9, 20, 16)])
def test_texture_is_what_averaging_by_twos_loses(size: tuple[int, ...]) -> None:
    batch = np.random.default_rng(0).random((3, 1, *size)).astype(np.float32)
    found = texture(batch)
    assert found.shape == (3, 4)
    even = batch[0, 0][tuple(slice(0, n - n % 2) for n in size)].astype(float)
    coarse = even
    for axis in range(even.ndim):
        coarse = (
            np.take(coarse, range(0, size[axis] - 1, 2), axis) + np.take(coarse, range(1, size[axis], 2), axis)
        ) / 2
    lost = even - np.kron(coarse, np.ones((2,) * even.ndim))
    assert found[0, 0] == pytest.approx(np.log(np.mean(lost**2)), abs=1e-3)
    assert np.isfinite(texture(np.zeros_like(batch))).all()


def test_texture_sees_blur_and_noise_and_not_a_mirror() -> None:
    random = np.random.default_rng(1)
    image = random.random((1, 1, 64, 64)).astype(np.float32)
    smooth = (image + np.roll(image, 1, -1) + np.roll(image, 1, -2) + np.roll(image, (1, 1), (-1, -2))) / 4
    assert (texture(smooth) < texture(image))[0, 0]
    assert texture(image[..., ::-1]) == pytest.approx(texture(image))


FACTS = [
    Acquisition("CR", "", "", "", "", (0.5, 0.5), (400, 300)),
    Acquisition("DX", "", "", "", "", (1.0, 0.8), (500, 320)),
]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"modality": "MR"}, "its modality is MR; accepted: CR, DX, those of training"),
        ({"modality": "QUITTENBAUM"}, "its modality is another one; accepted: CR, DX"),
        ({"modality": ""}, ""),
        ({"spacing_mm": (0.4, 0.4)}, ""),
        (
            {"spacing_mm": (0.5, 1.3)},
            "1.3 mm a pixel along an axis; accepted 0.333 to 1.2 (training 0.5 to 0.8, +-50 %)",
        ),
        ({"spacing_mm": ()}, ""),
        ({"shape": (60, 60)}, "60 pixels along an axis; accepted 267 to 750 (training 400 to 500, +-50 %)"),
        ({"shape": (20, 400, 300)}, ""),  # other axes: the chain refuses that itself
    ],
)
def test_header_rules(change: dict[str, Any], words: str) -> None:
    told = fit_rules(FACTS, 1.5).refusal(replace(FACTS[0], **change))
    assert (words in told) if words else not told


def test_rules_ask_only_for_what_every_training_scan_says() -> None:
    rules = fit_rules([*FACTS, replace(FACTS[0], modality="", spacing_mm=())], 1.5)
    assert rules.modality == [] and rules.spacing_mm is None and rules.shape is not None
    assert fit_rules([], 1.5) == HeaderRules()


def test_facts_are_those_of_the_scan() -> None:
    volume = Volume(np.zeros((1, 5, 7), np.float32), np.eye(4), (0.5, 0.25), "CR")
    facts = Acquisition.from_volume(volume)
    assert (facts.modality, facts.spacing_mm, facts.shape) == ("CR", (0.5, 0.25), (5, 7))
    assert Acquisition.from_volume(replace(volume, source={"spacing": "unknown"})).spacing_mm == ()


def test_nothing_is_seen_on_a_blank_image() -> None:
    image = np.full((1, 8, 8), 0.5, np.float32)
    assert "blank" in blank(image)
    image[0, 0, 0] = 0.6
    assert not blank(image)
    image[0, 0, 0] = np.nan
    assert "not finite" in blank(image)


def test_a_file_that_is_no_gate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "domain.json").write_text('{"format": 2}')
    with pytest.raises(ReleaseError, match="no out-of-domain check that this medopt can read"):
        OutOfDomainCheck.read(tmp_path / "domain.json")
    with pytest.raises(ReleaseError, match="no out-of-domain check"):
        OutOfDomainCheck.read(tmp_path / "absent.json")


def of_release(finished: Finished, image: FloatArray) -> tuple[str, str]:
    answer = Release.open(finished.release, threads=1).predict_batch(image[None])[0]
    assert bool(answer.decision) != bool(answer.declined)
    assert set(answer.probabilities) == {"clear", "blob"}
    return answer.decision, answer.declined or ""


def test_a_release_declines_what_its_training_never_saw(finished: Finished) -> None:
    predictor = Release.open(finished.release, threads=1)
    scan = read_scan(finished.clinic.data / "scans" / "000.dcm")
    image, facts = predictor.prepare(scan)
    assert facts.shape == (40, 40)
    assert of_release(finished, image)[1] == ""
    assert "blank" in of_release(finished, np.zeros_like(image))[1]
    noise = np.random.default_rng(0).random(image.shape).astype(np.float32)
    assert "unlike the training images" in of_release(finished, noise)[1]
    blank_scan = replace(scan, array=np.full_like(scan.array, 700))
    assert "blank" in (predictor.predict(blank_scan).declined or "")


@pytest.mark.parametrize("kind", ["int8", "float"])
def test_the_run_says_how_often_the_gate_declines(finished: Finished, kind: str) -> None:
    found = json.loads((finished.folder / "domain.json").read_text())
    assert found == finished.done.summary["domain"]
    assert found["images"] == {"train": 36, "validation": 18}
    shares = found["declined"][kind]
    assert shares["validation"]["value"] == 0 and shares["validation"]["high"] > 0.2  # the farthest is the limit
    assert set(shares["sites"]) == {"harbour", "hill", "valley"} and shares["test"]["n"] == 18
    assert found["altered"]["blank"]["value"] == found["altered"]["random noise"]["value"] == 1
    assert {"noise, level 5", "upside down", "inverted"} <= set(found["altered"])
    assert "motion, level 5" not in found["altered"]  # the study measures two families only


def test_the_gate_holds_no_image_and_no_patient(finished: Finished) -> None:
    text = (finished.release / "domain.json").read_text()
    assert (finished.release / "domain.json").stat().st_size < 200_000
    gate = json.loads(text)
    assert set(gate) == {"format", "false_alarm", "rules", "content", "texture", "images"}
    width = len(gate["content"]["int8"]["mean"])
    assert all(len(one["directions"]) < 36 for one in gate["content"].values()) and width == 256


def test_padding_is_no_texture() -> None:
    """The same scan in a larger frame has the same texture."""
    scan = np.random.default_rng(2).uniform(0.2, 1, (2, 1, 32, 40)).astype(np.float32)
    framed = np.pad(scan, ((0, 0), (0, 0), (5, 3), (0, 9)))
    assert texture(framed) == pytest.approx(texture(scan))


def test_of_a_case_of_several_images_each_one_that_is_there_is_looked_at() -> None:
    """Behind two images stand their masks; the second image is missing, or blank."""
    random = np.random.default_rng(3)
    scan = random.random((1, 8, 8)).astype(np.float32)
    there, missing, even = np.ones_like(scan), np.zeros_like(scan), np.full_like(scan, 0.3)
    alone = np.concatenate([scan, missing, there, missing])
    assert not blank(alone, 2) and "one of its images is blank" in blank(np.concatenate([scan, even, there, there]), 2)
    assert "blank" in blank(np.concatenate([scan, even]), 2) and not blank(np.concatenate([scan, scan]), 2)
    assert texture(alone[None], 2) == pytest.approx(texture(scan[None]))


def test_what_alters_a_case_leaves_its_masks_and_missing_images(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(prepare={"channels": ["t1", "t2"], "missing_channel": "zeros"})
    batch = np.zeros((1, 4, 16, 16), np.float32)
    batch[0, 0], batch[0, 2] = np.random.default_rng(4).random((16, 16)), 1
    for name, change in alterations(study).items():
        changed = change(batch, ["c"])
        assert np.array_equal(changed[:, 1:], batch[:, 1:]), name
        assert not np.array_equal(changed[:, 0], batch[:, 0]) or "level" in name

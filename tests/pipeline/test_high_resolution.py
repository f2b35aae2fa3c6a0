"""A whole run on tiles, from manifest to answer: the gate, the release, its maps; and one that begins with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clinic import STUDY, write_rows, write_study
from clinic_fixtures import Done, call, only_folder
from PIL import Image
from safetensors.torch import save_file

from medopt.inference.evidence_map import Evidence
from medopt.inference.tile_evidence import TileEvidence
from medopt.models import build_resnet

SPLITS = ("train",) * 8 + ("val",) * 4 + ("test",) * 4
SHAPE = (96, 70)
STARTED = {"start": "start.safetensors", "pooling": "mean", "tile": [32, 32]}
TRAINED = {"depth": 14, "width": 0.125, "stem": "small", "pooling": "attention", "tile": [32, 32], "global_view": True}


def scan(at: int) -> tuple[np.ndarray, int]:
    """An image with a bright spot of 3 x 3 pixels, or none."""
    random, label = np.random.default_rng(at), at % 2
    image = random.integers(40, 80, SHAPE)
    down, across = random.integers(4, 66, 2)
    image[down : down + 3, across : across + 3] += 150 * label
    return image.astype(np.uint8), label


def answered(folder: Path, name: str, model: dict[str, Any], *settings: str) -> tuple[Done, Path]:
    """A whole run on 64 such images."""
    (folder / "scans").mkdir(parents=True)
    rows = []
    for at in range(64):
        image, label = scan(at)
        Image.fromarray(image).save(folder / "scans" / f"{at:03d}.png")
        labelled = {"label": ("clear", "blob")[label], "split": SPLITS[at // 2 % 16], "site": "one"}
        rows.append({"image": f"{at:03d}.png", "patient_id": f"P{at}"} | labelled)
    write_rows(folder / "manifest.csv", rows)
    described = STUDY | {
        "name": name,
        "prepare": {"size": [96, 72], "intensity": {"method": "range", "low": 0, "high": 255}},
        "augment": {"probability": 0.2, "shift": "none"},
        "model": model,
        "training": {"epochs": 6, "batch_size": 8, "optimizer": {"lr": 0.003}, "ema_decay": 0, "mixup": 0},
        "evaluation": {"bootstrap": 100, "shift_cases": 0, "explain": 3, "nearest": 1},
        "domain": {"false_alarm": 0.2},
    }
    sets = [word for setting in settings for word in ("--set", setting)]
    words = ("--data", folder, "--runs", folder / "runs", "--override", "a tester", "--reason", "a test", "--json")
    done = call("run", write_study(folder, described), *sets, *words)
    assert done.code == 0, done.stderr
    return done, only_folder(folder / "runs", name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    return answered(tmp_path_factory.mktemp("tiles"), "tiles", TRAINED)


def test_both_engines_and_int8_pass_the_gate(trained: tuple[Done, Path]) -> None:
    gate = json.loads((trained[1] / "metrics.json").read_text())["gate"]
    assert gate["passed"] and set(gate["figures"]["engines_passed"]) == {"onnxruntime", "openvino"}
    assert gate["figures"]["engines"]["onnxruntime"]["largest_shift"] < 0.1


def test_the_release_answers_with_maps_of_the_whole_image(trained: tuple[Done, Path], tmp_path: Path) -> None:
    folder = trained[1]
    scans = sorted((folder.parents[2] / "scans").glob("*.png"))[:6]
    done = call(
        "predict", folder / "release", *scans, "--out", tmp_path / "a.csv", "--heatmaps", tmp_path / "maps", "--json"
    )
    assert done.code == 0, done.stderr
    assert done.summary["heatmaps"] == len(list((tmp_path / "maps").glob("*.png"))) > 0
    evidence = Evidence.open(folder / "release" / "model.int8.onnx")
    assert isinstance(evidence, TileEvidence)
    explained = json.loads((folder / "explanations.json").read_text())
    assert len(explained["cases"]) == 3 and (folder / "figures" / "explain" / "cases.png").exists()


def test_a_start_s_linear_model_is_the_network_of_means(tmp_path: Path) -> None:
    network = build_resnet(14, channels=1, width=0.125, stem="small", seed=7)
    save_file({name: value.clone() for name, value in network.state_dict().items()}, tmp_path / "start.safetensors")
    _, folder = answered(tmp_path / "work", "started", STARTED | {"start": str(tmp_path / "start.safetensors")})
    linear = pd.read_csv(folder / "baselines.csv").query("model == 'start' and split == 'test'")
    answers = pd.read_csv(folder / "predictions.csv").query("model == 'float' and split == 'test'")
    assert linear["case_id"].tolist() == answers["case_id"].tolist()
    np.testing.assert_allclose(answers["logit"], linear["logit"], atol=1e-3)
    assert len(linear) == 16 and np.ptp(linear["logit"]) > 0.1

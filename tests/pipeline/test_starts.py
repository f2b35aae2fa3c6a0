"""A run that begins with pretrained weights: what it takes, what it says of them, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from clinic import Clinic
from clinic_fixtures import Done, call, only_folder
from safetensors.torch import save_file

from medopt.data.images_seen import images_seen
from medopt.models import build_resnet
from medopt.models.starts.opening import open_start
from medopt.pipeline.start import fitting_starts
from medopt.training.checkpoint import read_tensors

RENAMED = {"reduce": "conv1", "spatial": "conv2", "expand": "conv3", "norm1": "bn1", "norm2": "bn2", "norm3": "bn3"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey ResNet-14 of 1/8 width as torchvision names one."""
    network = build_resnet(14, channels=1, width=0.125, stem="large", variant="v1.5", seed=7)
    named = {}
    for name, value in network.state_dict().items():
        parts = [RENAMED.get(part, "downsample" if part == "skip" else part) for part in name.split(".")]
        named[".".join(parts) if name.startswith("layer") else name] = value.clone()
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_file(named, path)
    return path


def words(clinic: Clinic, runs: Path, *settings: str) -> list[object]:
    chosen = ("model.depth=14", "evaluation.shift_cases=0", "evaluation.explain=0", "training.epochs=1", *settings)
    study = yaml.safe_load(clinic.study_file.read_text())
    del study["model"]  # the start decides it
    path = runs.parent / "clinic.yaml"
    path.write_text(yaml.safe_dump(study))
    sets = [word for setting in chosen for word in ("--set", setting)]
    return ["run", path, "--data", clinic.data, "--runs", runs, *sets, "--json"]


@pytest.fixture(scope="module")
def started(clinic: Clinic, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A run from the start whose training changes nothing."""
    runs = tmp_path_factory.mktemp("started") / "runs"
    done = call(
        *words(
            clinic, runs, f"model.start={weights}", "training.optimizer.lr=1.0e-12", "training.fine_tune.freeze=nothing"
        )
    )
    assert done.code == 0, done.stderr
    return done, only_folder(runs, "clinic")


def test_the_study_of_the_run_says_which_weights_and_which_network(started: tuple[Done, Path], weights: Path) -> None:
    study = yaml.safe_load((started[1] / "study.yaml").read_text())
    model = study["model"]
    assert model["start"] == str(weights) and len(model["start_digest"]) == 64
    kept = {key: model[key] for key in ("depth", "width", "stem", "variant", "head")}
    assert kept == {"depth": 14, "width": 0.125, "stem": "large", "variant": "v1.5", "head": "every_depth"}
    assert study["training"]["mixup"] == 0  # the recipe of starts, where the study says nothing else


def test_linear_models_stand_beside_the_network(started: tuple[Done, Path]) -> None:
    done, folder = started
    found = json.loads((folder / "baselines.json").read_text())
    assert set(found["models"]) == {"thumbnail", "start"}
    for one in found["models"].values():
        assert one["auc"]["low"] <= one["auc"]["value"] <= one["auc"]["high"]
    metrics = done.summary["test"]["float"]["auc"]["value"]
    thumbnail = found["models"]["thumbnail"]
    assert metrics - thumbnail["auc"]["value"] == pytest.approx(thumbnail["gain"]["value"])
    page = (folder / "report.html").read_text()
    assert "What training brought" in page and "teacher.safetensors" in page


def test_a_linear_model_that_training_does_not_beat_goes_on(started: tuple[Done, Path]) -> None:
    done, folder = started
    assert "the linear model goes on" in done.stderr
    found = json.loads((folder / "baselines.json").read_text())
    assert found["linear_goes_on"] is True
    assert found["models"]["start"]["gain"]["value"] == pytest.approx(0, abs=1e-9)
    checkpoints = folder / "checkpoints"
    assert (checkpoints / "best.safetensors").read_bytes() == (checkpoints / "start.safetensors").read_bytes()
    noted = read_tensors(checkpoints / "best.safetensors")[1]["architecture"]
    assert noted == {"variant": "v1.5", "stem": "large"}  # what the weights' shapes do not tell of the network


def test_without_tuning_the_linear_model_is_the_network(
    clinic: Clinic, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that a launcher started to help are let go; the network is explained as any other."""
    runs, let_go = tmp_path / "runs", []
    monkeypatch.setattr("medopt.pipeline.stages.train.dismiss", lambda *_: let_go.append(True))
    done = call(*words(clinic, runs, f"model.start={weights}", "evaluation.explain=2"))
    assert done.code == 0, done.stderr
    assert let_go == [True]
    assert (only_folder(runs, "clinic") / "explanations.json").is_file()
    assert "  epoch " not in done.stderr
    found = json.loads((only_folder(runs, "clinic") / "baselines.json").read_text())
    assert found["linear_goes_on"] is True and found["models"]["start"]["gain"]["value"] == 0


def test_the_release_says_what_it_began_with(started: tuple[Done, Path]) -> None:
    release = json.loads((started[1] / "release" / "release.json").read_text())
    start = release["figures"]["baselines"]["start"]
    assert start["name"] == "teacher.safetensors" and start["share"] == 1.0
    assert "teacher.safetensors" in (started[1] / "release" / "CARD.md").read_text()


@pytest.mark.long
def test_a_small_network_learns_from_a_teacher(clinic: Clinic, weights: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    small = ("model.width=0.0625", "model.stem=small", f"training.teacher={weights}", "training.batch_size=8")
    done = call(*words(clinic, runs, *small))
    assert done.code == 0, done.stderr
    folder = only_folder(runs, "clinic")
    found = json.loads((folder / "baselines.json").read_text())["models"]["teacher"]
    assert found["reads"] == "the teacher's features (teacher.safetensors)" and found["gain"]["value"] is not None
    without = call(*words(clinic, runs, *small, "training.teacher_share=0"))
    assert without.code == 0, without.stderr
    first, second = sorted((runs / "clinic").glob("2*"))
    best = "checkpoints/best.safetensors"
    assert (first / best).read_bytes() != (second / best).read_bytes()
    both = call(*words(clinic, runs, *small, f"training.teacher=[{weights},{first}]"))
    assert both.code == 0, both.stderr
    third = sorted((runs / "clinic").glob("2*"))[-1]
    teachers = json.loads((third / "baselines.json").read_text())["models"]["teacher"]
    names = "teacher.safetensors, best.safetensors"
    assert teachers["reads"] == f"2 teachers' features ({names})" and teachers["features"] > found["features"]
    assert (third / best).read_bytes() not in ((first / best).read_bytes(), (second / best).read_bytes())


def test_weights_that_have_seen_a_test_image_are_refused(clinic: Clinic, tmp_path: Path) -> None:
    """Pretrained on the clinic's whole folder, its test images among them."""
    start = tmp_path / "own.safetensors"
    pairs = ("model.depth=14", "model.width=0.125", "training.epochs=1", "prepare.size=[32,32]")
    small = [word for pair in pairs for word in ("--set", pair)]
    learned = call("pretrain", clinic.data / "scans", "--out", start, "--runs", tmp_path / "pre", *small)
    assert learned.code == 0, learned.stderr
    done = call(*words(clinic, tmp_path / "runs", f"model.start={start}"))
    done.refused(3, "18 of the 18 images of the test split")


@pytest.mark.parametrize("inside", ["", "checkpoints/best.safetensors", "release/model.float.onnx", "moved"])
def test_a_run_that_has_trained_on_a_test_image_is_refused(
    started: tuple[Done, Path], clinic: Clinic, tmp_path: Path, inside: str
) -> None:
    """Another study on the same files, that tests on what the first one trained on; also by a release alone."""
    folder = started[1]
    if inside == "moved":
        shutil.copytree(folder / "release", tmp_path / "moved")
        folder = tmp_path
    text = (clinic.data / "manifest.csv").read_text()
    swapped = text.replace(",test,", ",TRAIN,").replace(",train,", ",test,").replace(",TRAIN,", ",train,")
    (tmp_path / "swapped.csv").write_text(swapped)
    chosen = (f"model.start={folder / inside}", f"data.manifest={tmp_path / 'swapped.csv'}")
    call(*words(clinic, tmp_path / "runs", *chosen)).refused(3, "was trained on 36 of the 36 images of the test split")


def test_what_a_run_has_seen_goes_on_with_the_next_one(
    started: tuple[Done, Path], clinic: Clinic, tmp_path: Path
) -> None:
    """A run on some of the training images that begins with a run on all of them."""
    lines = (clinic.data / "manifest.csv").read_text().splitlines()
    some = [line for at, line in enumerate(lines) if at % 3 or ",train," not in line]
    (tmp_path / "some.csv").write_text("\n".join(some) + "\n")
    chosen = (f"model.start={started[1]}", f"data.manifest={tmp_path / 'some.csv'}", "training.fine_tune.freeze=all")
    done = call(*words(clinic, tmp_path / "runs", *chosen))
    assert done.code == 0, done.stderr
    folder = only_folder(tmp_path / "runs", "clinic")
    first, second = (images_seen(run / "checkpoints" / "best.safetensors") for run in (started[1], folder))
    assert len(some) < len(lines) and first and second == first


def test_a_network_that_is_not_the_starts_is_refused(clinic: Clinic, weights: Path, tmp_path: Path) -> None:
    done = call(*words(clinic, tmp_path / "runs", f"model.start={weights}", "model.depth=50"))
    done.refused(2, "model.depth is 50", "has 14")


def test_weights_that_have_changed_are_refused(clinic: Clinic, weights: Path, tmp_path: Path) -> None:
    settings = (f"model.start={weights}", f"model.start_digest={'f' * 64}")
    call(*words(clinic, tmp_path / "runs", *settings)).refused(2, "has changed", "start_digest")


def test_weights_that_are_not_there_are_refused(clinic: Clinic, tmp_path: Path) -> None:
    done = call(*words(clinic, tmp_path / "runs", "model.start=no-such-weights"))
    done.refused(2, "no-such-weights", "nsfw-thin-resnet50")


def test_a_run_is_a_start_as_its_network_was_built(started: tuple[Done, Path], clinic: Clinic, tmp_path: Path) -> None:
    done = call(*words(clinic, tmp_path / "runs", f"model.start={started[1]}"), "--dry-run")
    assert done.code == 0, done.stderr
    opened = open_start(str(started[1]), tmp_path)
    built = opened.start
    assert (built.layout, built.depth, built.variant, built.stem) == ("medopt", 14, "v1.5", "large")


def test_probe_looks_at_validation_alone(clinic: Clinic, weights: Path, tmp_path: Path) -> None:
    study = words(clinic, tmp_path / "runs")[1]
    done = call("probe", study, "--start", weights, "--data", clinic.data, "--runs", tmp_path / "runs", "--json")
    assert done.code == 0, done.stderr
    models = done.summary["models"]
    assert [one["reads"] for one in models] == ["thumbnails", "features of teacher.safetensors"]
    assert all(one["auc"]["n"] == 18 for one in models)
    assert not (tmp_path / "runs" / "clinic").exists()  # it is no run


def test_the_best_fitting_start_is_of_the_scans_modality() -> None:
    """Ultrasound gets no radiograph's start. Without a modality, starts of everyday images come first."""
    first = {shift: fitting_starts(2, 1, shift)[0].name for shift in ("radiograph", "ultrasound", "ct", "none")}
    assert first == {
        "radiograph": "chest-resnet50",
        "ultrasound": "radimagenet-resnet50",
        "ct": "radimagenet-resnet50",
        "none": "imagenet-resnet26d",
    }
    assert "chest-resnet50" not in [entry.name for entry in fitting_starts(2, 1, "mr")]
    assert [entry.name for entry in fitting_starts(3, 1, "mr")] == ["medicalnet-resnet50"]
    assert {"chest-resnet50", "imagenet-resnet50"} <= {entry.name for entry in fitting_starts(2, 3)}

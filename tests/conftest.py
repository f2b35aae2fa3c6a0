from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from isolation import isolate

from medopt.config import Study
from medopt.core.records import Case

if TYPE_CHECKING:  # importing torch takes seconds that other rooms' tests need not wait
    from medopt.training.job import PreparedSplit

pytest_plugins = ["clinic_fixtures", "predictions_drawn", "version_0_1_0"]

# The modules that take longest, longest first: begun early, none of them is waited for alone at the end.
LONGEST = (
    "test_jobs_on_ray",
    "test_killed_anywhere",
    "test_several_processes",
    "test_tracking_server",
    "test_team_server",
    "test_launch",
    "test_compress_run",
    "test_notebooks",
    "test_interrupted",
    "test_node",
    "test_kills",
    "test_seeds_and_folds",
    "test_sweep",
    "test_other_studies",
    "test_release_tampering",
    "test_public_api",
    "test_from_an_export",
    "test_wrong_input",
)


# What a whole run, a trained network or a file system of its own makes; whoever takes one of these is no unit test.
OF_A_SYSTEM = {"clinic", "finished", "shared_folder", "tiny_disk", "tiny_models"}

# Rooms of servers, peers and whole runs, and the modules in them that need none of these.
SYSTEM_ROOMS = {"experiments", "exports", "pacs", "pipeline", "serving", "tracking"}
UNITS = {
    *("test_calibration_refused", "test_kserve_manifest", "test_ledger", "test_retention", "test_search_space"),
    *("test_sender", "test_server_parts", "test_settings", "test_stage", "test_stow", "test_study_completion"),
    *("test_subgroups_of_cases", "test_durability", "test_intake_rules", "test_ledger_states", "test_v2_limits"),
}

# Modules that take 9 s of a processor or more: neither fast nor, by themselves, system.
SLOW = {
    *("test_batch_size", "test_cli", "test_export", "test_fast_monai_import", "test_launch", "test_loop"),
    *("test_manifest_build_command", "test_no_telemetry", "test_notebooks", "test_phantom_study", "test_public_api"),
    *("test_onnx_starts", "test_quantize", "test_tile_evidence", "test_tune_command", "test_variants"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test `system` or `fast`, and run the longest modules first (with --no-loadscope-reorder).

    system: it says so, it takes a fixture of OF_A_SYSTEM, or its room is one of SYSTEM_ROOMS and its module none of
    UNITS. fast: neither system nor long, and in no module of SLOW.
    """
    for item in items:
        module, room = item.path.stem, item.path.parent.name
        if OF_A_SYSTEM & set(getattr(item, "fixturenames", ())) or (room in SYSTEM_ROOMS and module not in UNITS):
            item.add_marker(pytest.mark.system)
        if not (item.get_closest_marker("system") or item.get_closest_marker("long") or module in SLOW):
            item.add_marker(pytest.mark.fast)
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _no_setting_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests, and the processes that they start, see an empty home and none of the user's settings.

    All workers share the home, so that what libraries keep there (matplotlib's list of fonts) is made once.
    """
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as change:
        isolate(change, (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "home")
        yield


@pytest.fixture(autouse=True)
def _registry_of_no_other_test() -> None:
    """MLflow keeps the registry that was named last for the whole process, and so for the next test."""
    if "mlflow.tracking" in sys.modules:
        sys.modules["mlflow"].set_registry_uri(None)  # type: ignore[attr-defined]


TINY: dict[str, Any] = {
    "name": "tiny",
    "question": "Is the left half brighter?",
    "data": {"manifest": "m.csv", "labels": ["no", "yes"]},
    "prepare": {"size": [16, 16]},
    "model": {"depth": 26, "width": 0.125, "stem": "small"},
    "training": {"epochs": 2, "batch_size": 4, "optimizer": {"lr": 0.01}, "ema_decay": 0, "mixup": 0},
}


@pytest.fixture(scope="session")
def tiny_study() -> Callable[..., Study]:
    """tiny_study(training={"epochs": 3}): a study that trains in seconds; sections are laid over the defaults."""

    def make(**sections: Any) -> Study:
        merged = {
            key: {**value, **sections.get(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()
        }
        return Study.model_validate({**{k: v for k, v in sections.items() if k not in TINY}, **merged})

    return make


@pytest.fixture(scope="session")
def tiny_set() -> Callable[..., PreparedSplit]:
    """tiny_set(folder, study, count): prepared images on disk whose label can be learned, two cases a patient."""

    from medopt.training.job import PreparedSplit

    def make(folder: Path, study: Study, count: int, split: str = "train", seed: int = 0) -> PreparedSplit:
        random, files, cases = np.random.default_rng(seed), [], []
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            label = index % len(study.data.labels)
            image = random.uniform(0, 0.6, (study.prepare.input_channels, *study.prepare.size)).astype(np.float32)
            width = study.prepare.size[-1] // 2
            image[..., :width] += 0.3 * label / (len(study.data.labels) - 1) + random.normal(0, 0.12)
            files.append(folder / f"{split}{index}.npy")
            np.save(files[-1], image)
            many = study.data.task == "multilabel"
            truth = tuple(int(k == label) for k in range(study.data.outputs)) if many else (label,)
            cases.append(Case(f"{split}{index}", f"p{index // 2}", files[-1].name, truth, split))  # type: ignore[arg-type]
        return PreparedSplit(cases, files)

    return make


@pytest.fixture(scope="session")
def stacked() -> Callable[[PreparedSplit], Any]:
    """All images of a set as one array (N, C, *size)."""
    return lambda prepared: np.stack([np.load(path) for path in prepared.files])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """tiny_disk(kilobytes): a real file system that fills up soon; skips where it may not be mounted."""
    place = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a file system of its own needs the right to mount ({error})")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a store on it may still be open in this process


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> SimpleNamespace:
    """A network that has learned: torch model, float ONNX and int8 ONNX, with its study and images."""
    from medopt.compression.export import export_onnx
    from medopt.compression.quantize import quantize_int8
    from medopt.training.job import TrainingCallbacks, TrainingJob
    from medopt.training.launch import train
    from medopt.training.loop import load_best

    folder = tmp_path_factory.mktemp("models")
    study = tiny_study(
        model={"zero_init_residual": False},
        augment={"probability": 0, "flip": []},
        training={"epochs": 16, "batch_size": 8},  # after 8 some processors' int8 loses too much for the gate
    )
    train_set, val_set = tiny_set(folder, study, 48), tiny_set(folder, study, 60, "val", seed=1)

    def score(logits: np.ndarray, targets: np.ndarray) -> float:
        return float(len(targets) - np.abs(targets - 1 / (1 + np.exp(-logits))).sum())

    trained = train(TrainingJob(study, train_set, val_set, folder, {}), TrainingCallbacks(score))
    model = load_best(study, trained.weights)
    images = [np.load(path) for path in train_set.files]
    parity = export_onnx(model, np.stack(images[:4]), folder / "float.onnx", study.compression.opset)
    quantize_int8(folder / "float.onnx", folder / "int8.onnx", images)
    return SimpleNamespace(
        study=study,
        model=model,
        train=train_set,
        val=val_set,
        parity=parity,
        float=folder / "float.onnx",
        int8=folder / "int8.onnx",
    )

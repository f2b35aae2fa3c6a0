"""Images in files, in memory and on a device: the same to the bit; and which of these is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medopt.config import Study, Training
from medopt.core.errors import ConfigError
from medopt.core.records import Case
from medopt.data.cache import PreparedCache, load_prepared
from medopt.data.loaders import Loader, on_device, predict_loader, train_loader, worker_count
from medopt.data.residence import HeldImages, Images, as_images, choose_residence, images_of, stored_bytes, widened
from medopt.data.samplers import OrderedSampler
from medopt.transforms.prepare import PrepareChain

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def levels(tmp_path: Path, tiny_study: Callable[..., Study]) -> tuple[list[Case], list[Path]]:
    """Nine prepared images of 16-bit levels, as the cache writes them, and one of all 65,536 levels."""
    from PIL import Image

    study, random, cases = tiny_study(), np.random.default_rng(0), []
    for number in range(9):
        Image.fromarray(random.integers(0, 255, (20, 20), np.uint8)).save(tmp_path / f"{number}.png")
        cases.append(Case(str(number), str(number), f"{number}.png", (number % 2,), "train"))
    return cases, PreparedCache(tmp_path / "cache", PrepareChain(study.prepare)).fill(cases, tmp_path)


def test_every_level_becomes_the_same_number_as_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "all.npy"
    np.save(path, np.arange(2**16, dtype=np.uint16).reshape(1, 256, 256))
    stored = images_of([path]).take([0])
    assert stored.dtype == torch.int16
    expected = torch.from_numpy(load_prepared(path))[None]
    assert torch.equal(as_images(stored), expected)
    assert torch.equal(widened(stored).mul_(1 / 65535), expected)  # the way of a GPU


def seen(loader: Loader, sampler: Any) -> list[torch.Tensor]:
    found = []
    for sampler.epoch in (0, 1):
        found += [value for batch in loader for value in batch]
    return found


@pytest.mark.parametrize("augment_on", ["device", "cpu"])
@pytest.mark.parametrize("workers", [0, 1])
def test_resident_and_streamed_batches_are_equal_to_the_bit(
    levels: tuple[list[Case], list[Path]], tiny_study: Callable[..., Study], augment_on: str, workers: int
) -> None:
    cases, files = levels
    plain = tiny_study(training={"mixup": 0.3})
    expected = seen(*train_loader(plain, cases, files))
    study = tiny_study(training={"mixup": 0.3, "augment_on": augment_on, "workers": workers, "accelerator": "cpu"})
    places: tuple[list[Path] | Images, ...] = (files, HeldImages(files, CPU))
    for place in places:
        found = seen(*train_loader(study, cases, place))
        assert len(found) == len(expected) == 12
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_prediction_is_the_same_from_everywhere(
    levels: tuple[list[Case], list[Path]], tiny_study: Callable[..., Study]
) -> None:
    (cases, files), study = levels, tiny_study()
    expected = list(predict_loader(study, cases, files))
    sampler = OrderedSampler(len(cases), study.training.resolved_sizes[1], 0, 1)
    others: tuple[Any, ...] = (
        predict_loader(study, cases, HeldImages(files, CPU)),
        on_device(study, cases, files, sampler, CPU),  # as on a GPU
        on_device(study, cases, HeldImages(files, CPU), sampler, CPU),
    )
    for other in others:
        for one, two in zip(other, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_fits_lies_where_it_is_used(levels: tuple[list[Case], list[Path]]) -> None:
    assert stored_bytes(levels[1]) == 9 * 16 * 16 * 2
    choices = [
        choose_residence("auto", 10 * GIB, device, host)[0]
        for device, host in [(80 * GIB, GIB), (16 * GIB, 64 * GIB), (16 * GIB, 16 * GIB), (None, 64 * GIB)]
    ]
    assert choices == ["device", "host", "disk", "disk"]
    assert "10.0 GiB of images, 80.0 GiB free on the GPU" in choose_residence("auto", 10 * GIB, 80 * GIB, GIB)[1]
    assert choose_residence("disk", GIB, 80 * GIB, GIB)[0] == "disk"
    assert choose_residence("device", GIB, None, 2 * GIB)[0] == "device"  # on a CPU: main memory


def test_what_does_not_fit_where_it_was_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device.*take 50\.0 GiB and 40\.0 GiB are free there.*residence: auto"):
        choose_residence("device", 50 * GIB, 40 * GIB, 100 * GIB)


def test_how_many_processes_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medopt.data.loaders.usable_cores", lambda: 24)
    gpu = torch.device("cuda")
    assert worker_count(Training(), CPU) == 0 and worker_count(Training(), gpu) == 16
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert worker_count(Training(), gpu, world=4) == 5 and worker_count(Training(), gpu, world=8) == 5
    assert worker_count(Training(workers=2), CPU) == 2


def test_ways_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="recompute and compile do not go together"):
        Training.model_validate({"recompute": True, "compile": True})
    with pytest.raises(ValueError, match="images that lie on the device are changed there"):
        Training.model_validate({"residence": "device", "augment_on": "cpu"})

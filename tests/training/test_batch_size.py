"""Micro-batches: what is tried, what fits, what is chosen; and how much memory a machine says is free."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch

from medopt.config import Study
from medopt.core.errors import StorageError, TrainingError
from medopt.core.reporter import SilentReporter
from medopt.training import batch_size, step_bench
from medopt.training.batch_size import Trial, candidate_sizes, choose, find_batch_size, try_sizes
from medopt.training.job import PreparedSplit
from medopt.training.memory import available_bytes, peak_bytes

MIB = 2**20
GIB = 2**30


def machine(
    limit: int, speed: Callable[[int], float] = lambda size: 10.0 * size
) -> Callable[[int], tuple[float, int] | None]:
    """A step over 64 images on a machine with `limit` bytes, which needs 100 MiB and 10 MiB an image."""

    def measure(size: int) -> tuple[float, int] | None:
        needed = 100 * MIB + size * 10 * MIB
        return None if needed > limit else (64 / speed(size), needed)

    return measure


def tried(limit: int, told: int, images: int | None = 64) -> list[Trial]:
    return try_sizes([2, 4, 8, 16, 32, 64], machine(limit), told, images, 60, SilentReporter())


def test_the_fastest_is_chosen_where_memory_is_plenty() -> None:
    found = choose(tried(GIB * 4, GIB * 4), GIB * 4, "cpu", 64)
    assert (found.micro_batch, found.accumulation, found.batch_size) == (64, 1, 64)
    assert "all of a step at once" in found.reason


def test_a_small_memory_takes_a_smaller_micro_batch_and_the_batch_stays() -> None:
    found = choose(tried(500 * MIB, 500 * MIB), 500 * MIB, "cpu", 64)
    # 16 images take 260 MiB and 32 take 420, which is more than 80 % of 500
    assert (found.micro_batch, found.accumulation, found.batch_size) == (16, 4, 64)
    assert "the gradients of 4 micro-batches add up" in found.reason and "32 images take more" in found.reason
    assert found.trials[-1].note == "not tried: would need about 0.7 GiB"  # 740 MiB, told from 16 and 32
    assert json.loads(json.dumps(found.json_values(), allow_nan=False)) == found.json_values()


def test_out_of_memory_is_an_answer() -> None:
    trials = tried(300 * MIB, 64 * GIB)  # the machine says that much is free, and kills at 300 MiB all the same
    assert [one.micro_batch for one in trials] == [2, 4, 8, 16, 32]
    assert trials[-1] == Trial(32, None, None, "out of memory")
    assert choose(trials, 64 * GIB, "cpu", 64).micro_batch == 16


def test_of_equally_fast_sizes_the_given_step_takes_the_largest_and_a_found_one_the_smallest() -> None:
    trials = [Trial(2, 50.0, MIB), Trial(4, 98.0, MIB), Trial(8, 100.0, MIB), Trial(16, 95.0, MIB)]
    assert choose(trials, GIB, "cpu", 16).micro_batch == 16
    found = choose(trials, GIB, "cpu", None)
    assert (found.batch_size, found.micro_batch, found.accumulation) == (4, 4, 1)


def test_nothing_fits() -> None:
    with pytest.raises(TrainingError, match=r"Not even 2 images fit the 0\.1 GiB free on cpu"):
        choose(tried(100 * MIB, 100 * MIB), 100 * MIB, "cpu", 64)


def test_no_size_is_begun_when_time_is_up() -> None:
    trials = try_sizes([2, 4], machine(GIB), GIB, 64, -1, SilentReporter())
    assert [one.note for one in trials] == ["not tried: -1 s were over"]


def test_which_sizes_are_tried(tiny_study: Callable[..., Study]) -> None:
    def sizes(batch: object, count: int) -> list[int]:
        return candidate_sizes(tiny_study(training={"batch_size": batch}), count)

    assert sizes(16, 100) == [2, 4, 8, 16] and sizes(12, 100) == [2, 4, 8, 12] and sizes(16, 6) == [2, 4, 6]
    assert sizes("auto", 100) == [2, 4, 8] and sizes("auto", 10**6)[-1] == 256 and sizes("auto", 3) == [2]


def test_real_steps_are_tried(
    tmp_path: Path,
    tiny_study: Callable[..., Study],
    tiny_set: Callable[..., PreparedSplit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here(*given: Any, cuda: bool) -> Any:  # spares a process
        return step_bench._here(*given)

    monkeypatch.setattr(batch_size, "measuring", here)
    study = tiny_study(training={"batch_size": 4, "micro_batch": "auto", "optimizer": {"lr": "auto"}})
    prepared = tiny_set(tmp_path, study, 8)
    found = find_batch_size(study, prepared.cases, prepared.files, available=GIB)
    assert [one.micro_batch for one in found.trials] == [2, 4] and found.batch_size == 4
    assert all((one.images_per_second or 0) > 0 for one in found.trials)


def test_on_a_cpu_a_process_of_its_own_measures_and_its_end_is_an_answer(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study()
    prepared = tiny_set(tmp_path, study, 8)
    with step_bench.measuring(study, prepared.cases, prepared.files, cuda=False) as measure:
        found = measure(2)
        assert found is not None and found[0] > 0 and found[1] > MIB
        child = next(one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline()))
        child.kill()
        assert measure(4) is None


def test_an_error_in_that_process_is_told_as_it_is(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study()
    cases, gone = tiny_set(tmp_path, study, 8).cases, [tmp_path / "gone.npy"] * 8
    ours, theirs = Pipe()
    there = Thread(target=step_bench._serve, args=(theirs, torch.get_num_threads(), study, cases, gone))
    there.start()
    ours.send(2)
    assert isinstance(told := ours.recv(), StorageError) and "gone.npy vanished" in str(told)
    ours.close()
    there.join(10)
    assert not there.is_alive()


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_containers_limit_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    groups, own = tmp_path / "groups", tmp_path / "self"
    group(own, cgroup="0::/a/b\n")
    group(groups / "a", memory__max=f"{4 * MIB}", memory__current=f"{3 * MIB}", memory__stat=f"inactive_file {MIB}\n")
    group(groups / "a" / "b", memory__max="max", memory__current="7", memory__stat="inactive_file 0\n")
    assert available_bytes(groups, own) == 2 * MIB
    group(groups / "a" / "b", memory__max=f"{MIB}", memory__current=f"{2 * MIB}")
    assert available_bytes(groups, own) == 0


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    own, place = tmp_path / "self", tmp_path / "groups" / "memory" / "box"
    group(own, cgroup="5:cpu,memory:/box\n1:name=systemd:/box\n")
    group(place, memory__limit_in_bytes=f"{5 * MIB}", memory__usage_in_bytes=f"{MIB}", memory__stat="cache 0\n")
    assert available_bytes(tmp_path / "groups", own) == 4 * MIB


def test_without_control_groups_the_machines_memory_counts(tmp_path: Path) -> None:
    assert 0 < available_bytes(tmp_path, tmp_path) <= psutil.virtual_memory().total


def test_the_peak_remembers_what_was_given_back() -> None:
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    held = peak_bytes()
    del block
    assert peak_bytes() > 0.95 * held > 64 * MIB  # the kernel counts in batches

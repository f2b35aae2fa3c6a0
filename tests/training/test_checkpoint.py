from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medopt.core.errors import StorageError, TrainingError
from medopt.training.checkpoint import read_tensors, restore_optimizer, write_tensors

TENSORS = {
    "weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "step": torch.tensor(7.0),
    "count": torch.tensor(3),
    "state": torch.get_rng_state(),
    "empty": torch.zeros(0),
}


def test_what_is_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    facts = {"study": "a", "history": [{"val_metric": math.nan, "val_loss": 1e-30}]}
    write_tensors(tmp_path / "new" / "a.safetensors", TENSORS, facts)
    tensors, found = read_tensors(tmp_path / "new" / "a.safetensors")
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert found["study"] == "a" and math.isnan(found["history"][0]["val_metric"])
    assert found["history"][0]["val_loss"] == 1e-30


def test_every_changed_byte_of_the_values_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {})
    content = path.read_bytes()
    for place in range(len(content) - 200, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(TrainingError, match=r"a\.safetensors is damaged or missing \(its checksum"):
            read_tensors(path)


def test_a_missing_file_and_one_of_another_program_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.safetensors is damaged or missing"):
        read_tensors(tmp_path / "gone.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(TrainingError, match=r"foreign\.safetensors is damaged or missing"):
        read_tensors(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "may not be written to")])
def test_a_refusal_of_the_system_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {})

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=words):
        write_tensors(path, {"a": torch.zeros(3)}, {})
    monkeypatch.undo()
    assert read_tensors(path)[0]["a"].sum() == 3
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_goes_on_where_it_was(fused: bool) -> None:
    ends = []
    for is_cut in (False, True):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
        for number in range(4):
            if is_cut and number == 2:  # a file keeps values in the order of their axes
                kept = {
                    f"{index}.{name}": value.clone(memory_format=torch.contiguous_format)
                    for index, entry in optimizer.state_dict()["state"].items()
                    for name, value in entry.items()
                }
                optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
                restore_optimizer(optimizer, kept)
            optimizer.zero_grad()
            layer(torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(number))).square().sum().backward()
            optimizer.step()
        ends.append(layer.weight.detach())
    assert torch.equal(*ends)


def test_a_fused_optimizer_counts_its_steps_where_the_weights_are() -> None:
    weights = nn.Parameter(torch.zeros(3, device="meta"))
    for fused, place in ((True, "meta"), (False, "cpu")):
        optimizer = torch.optim.AdamW([weights])
        optimizer.param_groups[0]["fused"] = fused
        restore_optimizer(optimizer, {"0.step": torch.tensor(4.0), "0.exp_avg": torch.ones(3)})
        assert {name: value.device.type for name, value in optimizer.state[weights].items()} == {
            "step": place,
            "exp_avg": "meta",
        }

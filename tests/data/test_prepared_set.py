from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medopt.config import Study
from medopt.core.errors import DataError
from medopt.core.records import Case
from medopt.data.loaders import KeyedDataset
from medopt.data.prepared_set import PreparedSet
from medopt.manifest.table import read_manifest
from medopt.transforms.prepare import PrepareChain

ROWS = ["p1,no,train", "p2,yes,train", "p3,no,val", "p4,yes,val", "p5,no,test", "p6,yes,test"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A data folder with a manifest `m.csv` of six images of noise."""
    images = np.random.default_rng(0).integers(0, 255, (6, 20, 20)).astype(np.uint8)
    np.savez(tmp_path / "scans.npz", images=images)
    lines = [f"scans.npz#images/{at},{row}" for at, row in enumerate(ROWS)]
    (tmp_path / "m.csv").write_text("\n".join(["image,patient_id,label,split", *lines]))
    return tmp_path


def test_a_loader_of_a_split_gives_the_chains_tensors_and_the_labels(
    archive: Path, tiny_study: Callable[..., Study]
) -> None:
    study = tiny_study()
    train = PreparedSet(archive / "m.csv", study, split="train", data=archive, cache=archive / "cache")
    images, labels = next(iter(DataLoader(train, batch_size=2)))
    chain = PrepareChain(study.prepare)
    wanted = [chain(archive / case.image) for case in read_manifest(archive / "m.csv", study)[:2]]
    assert torch.equal(images, torch.stack(wanted)) and images.dtype == torch.float32
    assert labels.tolist() == [0, 1] and labels.dtype == torch.int64
    assert len([*train]) == len(train) == 2  # iteration ends


def test_cases_of_ones_own_and_a_study_file(archive: Path, tiny_study: Callable[..., Study]) -> None:
    (archive / "study.yaml").write_text(tiny_study().model_dump_json())
    cases = read_manifest(archive / "m.csv", tiny_study())
    every = PreparedSet(cases, archive / "study.yaml", data=archive, cache=archive / "cache")
    assert (len(every), every.cases) == (6, cases)
    assert [label for _, label in every] == [0, 1, 0, 1, 0, 1]


def test_augmentation_is_that_of_training_by_epoch(archive: Path, tiny_study: Callable[..., Study]) -> None:
    study = tiny_study()
    chosen = PreparedSet(archive / "m.csv", study, data=archive, cache=archive / "cache", augment=True)
    chosen.epoch = 3
    training = KeyedDataset(study, chosen.cases, chosen.files)
    assert torch.equal(chosen[1][0], training[(3, 1, 0)][0])
    assert torch.equal(chosen[-1][0], training[(3, 5, 0)][0])
    first = chosen[1][0]
    chosen.epoch = 4
    assert not torch.equal(chosen[1][0], first)


def test_several_labels_and_volumes(tmp_path: Path, tiny_study: Callable[..., Study]) -> None:
    np.savez(tmp_path / "scans.npz", images=np.random.default_rng(0).random((1, 9, 10, 11)).astype(np.float32))
    study = tiny_study(
        data={"task": "multilabel", "labels": ["a", "b", "c"]}, prepare={"size": [8, 8, 8], "fit": "stretch"}
    )
    case = Case("c", "p", "scans.npz#images/0", (1, 0, 1), "train")
    image, label = PreparedSet([case], study, data=tmp_path, cache=tmp_path / "cache")[0]
    assert image.shape == (1, 8, 8, 8)
    assert isinstance(label, torch.Tensor) and label.tolist() == [1, 0, 1] and label.dtype == torch.float32


def test_a_patient_in_two_splits_is_refused(archive: Path, tiny_study: Callable[..., Study]) -> None:
    text = (archive / "m.csv").read_text().replace("p5", "p1")
    (archive / "m.csv").write_text(text)
    with pytest.raises(DataError, match="patient"):
        PreparedSet(archive / "m.csv", tiny_study(), split="train", data=archive, cache=archive / "cache")


def test_an_empty_set_is_refused(archive: Path, tiny_study: Callable[..., Study]) -> None:
    cases = [replace(case, split="train") for case in read_manifest(archive / "m.csv", tiny_study())]
    with pytest.raises(DataError, match="6 cases, none of them of the split 'val'"):
        PreparedSet(cases, tiny_study(), split="val", data=archive, cache=archive / "cache")

"""A study's prepared images as a torch Dataset, for training loops other than medopt's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, from_numpy
from torch.utils.data import Dataset

from medopt.config import Study
from medopt.config.study_file import data_folder, load_study
from medopt.core.errors import DataError
from medopt.core.records import Case, Split, label_table
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedCache, as_tensor
from medopt.manifest.card import load_card
from medopt.manifest.check import check_cases
from medopt.manifest.findings import refuse_findings
from medopt.manifest.splits import apply_folds
from medopt.manifest.table import read_manifest
from medopt.transforms.augment import apply, draw
from medopt.transforms.prepare import PrepareChain
from medopt.transforms.restore import restore_masks


class PreparedSet(Dataset[tuple[Tensor, int | Tensor]]):
    """Prepared images with their labels: a torch Dataset for any DataLoader and any training loop.

    An item is `(image, label)`. `image` is a float32 tensor (C, H, W), or (C, D, H, W) for a study of volumes, with
    values in 0..1 and C and the size of the study's `prepare` section: what the study's release makes of the same scan,
    to the bit. `label` is the class as an int, or for a multi-label study a float32 tensor (K,) of zeros and ones, NaN
    where a label is not known: leave it out of your loss (`loss[~target.isnan()].mean()`). For a regression study it is
    the number, a float32 tensor ().

    Every image is read and prepared once, when the set is made, and kept in the folder `cache` by its content; later
    sets of the same images and the same `prepare` section read it from there.

    Args:
        cases: the cases, as `medopt.read_manifest` gives them, or the path of a manifest (CSV). A manifest is checked
            as `medopt.run` checks it: no patient in two splits, every image there.
        study: a Study, or the path of a study file.
        split: "train", "val" or "test": only the cases of that split. None: all.
        data: the data folder below which the study's `data.root` lies; None: MEDOPT_DATA, else ./data.
        cache: folder for the prepared images. The default is that of `medopt.run`, which finds them there.
        augment: change each image at random by the study's `augment` section, as in training. What is drawn follows
            from the study's seed, `epoch` and the index alone, so set `epoch` before each pass over the set.
        reporter: hears of the progress; None: silence.

    Raises ConfigError where the study cannot be used, DataError where a manifest is refused, where no case is left, or
    naming every image that cannot be read.

    >>> import medopt, torch
    >>> manifest = medopt.draw_study("phantom-data/phantom", patients=30)  # 35 drawn radiographs
    >>> study = medopt.Study.model_validate({
    ...     "name": "nodules", "question": "Is there a nodule?", "prepare": {"size": [32, 32]},
    ...     "data": {"manifest": "manifest.csv", "root": "phantom", "labels": ["no_nodule", "nodule"]}})
    >>> train = medopt.PreparedSet(manifest, study, split="train", data="phantom-data", cache="cache")
    >>> image, label = train[0]
    >>> image.shape, label
    (torch.Size([1, 32, 32]), 1)
    >>> images, labels = next(iter(torch.utils.data.DataLoader(train, batch_size=8, shuffle=True)))
    >>> images.shape, labels.shape
    (torch.Size([8, 1, 32, 32]), torch.Size([8]))
    """

    def __init__(
        self,
        cases: Sequence[Case] | str | Path,
        study: Study | str | Path,
        *,
        split: Split | None = None,
        data: str | Path | None = None,
        cache: str | Path = "runs/cache",
        augment: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        self.study = study if isinstance(study, Study) else load_study(Path(study))
        self.augment, self.epoch = augment, 0
        root = data_folder(Path(data) if data is not None else None) / self.study.data.root
        if isinstance(cases, str | Path):
            cases = _read_checked(Path(cases), self.study, root)
        self.cases = tuple(case for case in cases if split in (None, case.split))
        if not self.cases:
            raise DataError(f"No case is left for this set: {len(cases)} cases, none of them of the split {split!r}.")
        self.files = PreparedCache(Path(cache), PrepareChain(self.study.prepare)).fill(self.cases, root, reporter)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """The image (C, *size) in 0..1 and its label; raises IndexError beyond the last."""
        image, case = as_tensor(self.files[index]), self.cases[index]
        if self.augment:
            random = np.random.default_rng((self.study.seed, self.epoch, index % len(self)))
            changed = apply(image[None], [draw(self.study.augment, self.study.spatial_dims, random)])[0]
            image = restore_masks(self.study.prepare, image, changed)
        if self.study.data.task == "multilabel":
            return image, from_numpy(label_table([case])[0]).to(image.dtype)
        return image, (torch.tensor(case.number) if self.study.data.task == "regression" else case.class_index)


def _read_checked(manifest: Path, study: Study, root: Path) -> tuple[Case, ...]:
    cases = read_manifest(manifest, study)
    refuse_findings(check_cases(cases, root, study, load_card(manifest)), study)
    return apply_folds(cases, study)

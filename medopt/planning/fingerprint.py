"""The data in numbers, from the manifest and from a sample of the training images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.config import Prepare
from medopt.core.errors import DataError, listed
from medopt.core.records import SPLITS, Case, label_table
from medopt.core.reporter import Reporter, SilentReporter
from medopt.manifest.findings import display_name
from medopt.manifest.image_facts import ImageFacts, read_facts
from medopt.manifest.quality import outliers
from medopt.transforms.resize import square_shape

SAMPLE = 120
"""Number of images that are read; more hardly move a median."""
MAX_ODD = 0.1
"""Largest share of a sample that is left out of the plan as odd."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The data in numbers: `counts` are images by split and label, `sample` facts of some training images.

    `odd` says of sampled volumes that are not in `sample`, because their spacing or extent is far from all others.
    `prepare` names the images of a case where there are several.
    """

    images: int
    patients: int
    sites: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    sample: tuple[ImageFacts, ...]
    odd: tuple[str, ...] = ()
    prepare: Prepare | None = None
    rarest: float | None = None
    """Share of the rarest label among the training images of which it is known; None: as `counts` say."""

    @property
    def rarest_share(self) -> float:
        """Share of the rarest label of the training images."""
        classes = [count for label, count in self.counts["train"].items() if label]
        return min(classes) / max(1, self.train) if self.rarest is None else self.rarest

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.sample[0].size)

    @property
    def train(self) -> int:
        """Images in the training split."""
        return self.counts["train"].get("", 0)

    @property
    def modality(self) -> str:
        """The modality of all images; empty where it is not given, or where they differ."""
        modalities = {image.modality for image in self.sample}
        return modalities.pop() if len(modalities) == 1 else ""

    def sizes(self, quantile: float) -> tuple[float, ...]:
        """A quantile of the sizes in pixels, axis by axis."""
        return tuple(np.quantile([image.size for image in self.sample], quantile, axis=0).tolist())

    def square_sizes(self) -> NDArray[np.float64]:
        """The sizes of the images in square pixels, (N, 2)."""
        return np.array([square_shape(image.size, (image.aspect, 1.0)) for image in self.sample], float)

    def spacing_mm(self) -> tuple[float, ...] | None:
        """The median spacing in mm, axis by axis; None where not all images give one."""
        known = [image.spacing_mm for image in self.sample]
        return tuple(np.median(known, axis=0).tolist()) if all(known) else None

    def extents_mm(self, quantile: float) -> tuple[float, ...]:
        """A quantile of the extents in mm, axis by axis; all images must give their spacing."""
        extents = [np.multiply(image.size, image.spacing_mm) for image in self.sample]
        return tuple(np.quantile(extents, quantile, axis=0).tolist())


def take_fingerprint(
    cases: Sequence[Case],
    labels: Sequence[str],
    task: str,
    folder: Path,
    reporter: Reporter | None = None,
    prepare: Prepare | None = None,
) -> Fingerprint:
    """Read a sample of the training images below `folder`, spread over sites and labels.

    Raises DataError where an image of it cannot be read, or where images and volumes are mixed.
    """
    train = [case for case in cases if case.split == "train"]
    if not train:
        raise DataError("No case is in the split train, so there is nothing to plan with.")
    chosen = _sample(train)
    sample = _read(chosen, folder, reporter or SilentReporter(), prepare)
    dims = Counter(len(image.size) for image in sample)
    if len(dims) > 1:
        raise DataError(
            f"{dims[2]} of {len(sample)} sampled scans are single images and {dims[3]} are volumes. A study takes "
            "either: make a manifest of each."
        )
    sample, odd = _without_odd(chosen, sample)
    counts: dict[str, dict[str, int]] = {
        split: _count_labels([case for case in cases if case.split == split], labels, task) for split in SPLITS
    }
    return Fingerprint(
        images=len(cases),
        patients=len({case.patient_id for case in cases}),
        sites=tuple(sorted({case.site for case in cases})),
        counts=counts,
        sample=tuple(sample),
        odd=tuple(odd),
        prepare=prepare,
        rarest=_rarest_share(train) if task == "multilabel" else None,
    )


def _rarest_share(cases: Sequence[Case]) -> float:
    """The lowest share of images that have a label, of those of which it is known; 0 where it is known of none."""
    labels = label_table(cases)
    known = np.maximum((~np.isnan(labels)).sum(axis=0), 1)
    return float((np.nansum(labels, axis=0) / known).min())


def _without_odd(cases: Sequence[Case], sample: list[ImageFacts]) -> tuple[list[ImageFacts], list[str]]:
    """The facts without those of a few volumes whose spacing or extent is far from the median, and these in words.

    One wrong header would otherwise decide the size of all. Where many are far, they are how the data are.
    """
    extents = [tuple(np.multiply(image.size, image.spacing_mm or 0.0).tolist()) for image in sample]
    far = {*outliers([image.spacing_mm for image in sample], 3), *outliers(extents, 3)}
    if len(far) > max(1, MAX_ODD * len(sample)):
        return sample, []
    odd = [
        f"{display_name(cases[row])} ({' x '.join(f'{step:.3g}' for step in sample[row].spacing_mm)} mm, "
        f"{' x '.join(str(side) for side in sample[row].size)} voxels)"
        for row in sorted(far)
    ]
    return [image for row, image in enumerate(sample) if row not in far], odd


def _count_labels(cases: Sequence[Case], labels: Sequence[str], task: str) -> dict[str, int]:
    """Number of images by label; of all images under the empty name."""
    if task == "multilabel":
        counts = {label: sum(case.label[at] == 1 for case in cases) for at, label in enumerate(labels)}
    else:
        classes = Counter(case.class_index for case in cases)
        counts = {label: classes[at] for at, label in enumerate(labels)}
    return {"": len(cases)} | counts


def _sample(cases: Sequence[Case]) -> list[Case]:
    """At most SAMPLE cases, spread evenly over sites and labels; the same ones each time."""
    groups: dict[tuple[str, tuple[int, ...]], list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.case_id):  # a pseudonym: as good as shuffled
        groups[case.site, tuple(-1 if one is None else one for one in case.label)].append(case)
    turns = [(turn, name, case) for name, group in groups.items() for turn, case in enumerate(group[:SAMPLE])]
    return [case for _, _, case in sorted(turns, key=lambda turn: turn[:2])[:SAMPLE]]


def _read(cases: Sequence[Case], folder: Path, reporter: Reporter, prepare: Prepare | None) -> list[ImageFacts]:
    facts = read_facts(cases, folder, reporter, prepare=prepare)
    if problems := sorted(image.problem for image in facts if image.problem):
        raise DataError(
            f"{len(problems)} of {len(cases)} sampled images cannot be used: {listed(problems, 3)} "
            "medopt manifest check lists all such images, and --fix leaves them out."
        )
    return facts

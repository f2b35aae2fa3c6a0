"""What the data are, from the manifest and from a sample of the training images read whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medopt.core.errors import DataError, listed
from medopt.core.records import SPLITS, Case
from medopt.core.reporter import Reporter, SilentReporter
from medopt.manifest.quality import ImageFacts, read_facts

SAMPLE = 120
"""Images that are read; more do not move a median that is rounded anyway."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The data in numbers: `counts` is images by split and label; `looks` is the sample of training images."""

    images: int
    patients: int
    sites: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    looks: tuple[ImageFacts, ...]

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.looks[0].size)

    @property
    def train(self) -> int:
        """Images in the training split."""
        return self.counts["train"].get("", 0)

    @property
    def modality(self) -> str:
        """The modality of all images, empty where they do not say it or differ."""
        modalities = {look.modality for look in self.looks}
        return modalities.pop() if len(modalities) == 1 else ""

    def sizes(self, quantile: float) -> tuple[float, ...]:
        """A quantile of the sizes, axis by axis."""
        return tuple(np.quantile([look.size for look in self.looks], quantile, axis=0).tolist())

    def spacing_mm(self) -> tuple[float, ...] | None:
        """The median spacing, axis by axis; None where not all images say it."""
        known = [look.spacing_mm for look in self.looks]
        return tuple(np.median(known, axis=0).tolist()) if all(known) else None

    def extents_mm(self, quantile: float) -> tuple[float, ...]:
        """A quantile of the extents, axis by axis, where all images say their spacing."""
        return tuple(np.quantile([np.multiply(k.size, k.spacing_mm) for k in self.looks], quantile, axis=0).tolist())


def take_fingerprint(
    cases: Sequence[Case], labels: Sequence[str], task: str, folder: Path, reporter: Reporter | None = None
) -> Fingerprint:
    """Read a sample of the training images, spread over sites and labels.

    Raises DataError where an image of it cannot be read, or where images and volumes are mixed.
    """
    train = [case for case in cases if case.split == "train"]
    if not train:
        raise DataError("No case is in the split train, so there is nothing to plan by.")
    looks = _read(_spread(train), folder, reporter or SilentReporter())
    dims = Counter(len(look.size) for look in looks)
    if len(dims) > 1:
        raise DataError(
            f"{dims[2]} of {len(looks)} sampled scans are single images and {dims[3]} are volumes. A study takes "
            "either: make a manifest of each."
        )
    counts: dict[str, dict[str, int]] = {
        split: _count_labels([case for case in cases if case.split == split], labels, task) for split in SPLITS
    }
    return Fingerprint(
        images=len(cases),
        patients=len({case.patient_id for case in cases}),
        sites=tuple(sorted({case.site for case in cases})),
        counts=counts,
        looks=tuple(looks),
    )


def _count_labels(cases: Sequence[Case], labels: Sequence[str], task: str) -> dict[str, int]:
    """Images by label; all of them under the empty name."""
    if task == "multilabel":
        counts = {label: sum(case.label[at] for case in cases) for at, label in enumerate(labels)}
    else:
        classes = Counter(case.label[0] for case in cases)
        counts = {label: classes[at] for at, label in enumerate(labels)}
    return {"": len(cases)} | counts


def _spread(cases: Sequence[Case]) -> list[Case]:
    """At most SAMPLE cases, as evenly as can be over sites and labels, the same ones each time."""
    groups: dict[tuple[str, tuple[int, ...]], list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.case_id):  # a pseudonym: as good as shuffled
        groups[case.site, case.label].append(case)
    turns = [(turn, name, case) for name, group in groups.items() for turn, case in enumerate(group)]
    return [case for _, _, case in sorted(turns, key=lambda turn: turn[:2])[:SAMPLE]]


def _read(cases: Sequence[Case], folder: Path, reporter: Reporter) -> list[ImageFacts]:
    facts = read_facts(cases, folder, reporter)
    if problems := sorted(image.problem for image in facts if image.problem):
        raise DataError(
            f"{len(problems)} of {len(cases)} sampled images cannot be used: {listed(problems, 3)} "
            "medopt manifest check lists all such images, and --fix leaves them out."
        )
    return facts

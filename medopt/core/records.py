"""The records that stages pass on. Every record is frozen: a stage makes new ones and never changes another's.

Two matter most. `Volume` is what reading a scan gives, in training and in service alike. `Predictions` is the table
from which every number is computed: float and int8, each split, each site.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import ConfigError

FloatArray = NDArray[np.float32]
Split = Literal["train", "val", "test"]
Task = Literal["binary", "multiclass", "multilabel", "ordinal", "regression"]
Kind = Literal["float", "int8"]
WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
KINDS: tuple[Kind, ...] = ("float", "int8")
"""The two models of every run: the float network, and the int8 model that is served in its place."""
UNKNOWN = -1
"""In the labels of `Predictions`: it is not known whether the label holds."""
Label = int | None
"""A class index, or of several labels 0 or 1; None where it is not known whether the label holds."""
COLUMNS = ("case_id", "patient_id", "site", "split", "labels", "logits")


def is_exclusive(task: Task) -> bool:
    """Whether a case has one of several classes, and the outputs share a softmax."""
    return task in ("multiclass", "ordinal")


def has_one_output(task: Task) -> bool:
    """Whether the network has one output, which answers yes or no: a finding, or a number above its threshold."""
    return task in ("binary", "regression")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a manifest: an image (or a series) with its label.

    `case_id` and `patient_id` are pseudonyms; `image` is a path below the data folder, where a member of an
    `.npz` file is written `file.npz#array/index`. Of a case of several images (T1, T2, ...), `channels` are all of them
    in the study's order, "" for a missing one, and `image` is the first that is there. `label` holds one 0/1 entry for
    each label of a multi-label study (None where it is not known), else a single class index. `uncertain` are the
    places of the labels that the manifest calls uncertain, whatever the study made of them. `groups` are (column, cell)
    pairs, by which figures of subgroups are computed. `number` is what a regression study asks for; its label then says
    whether that lies above the threshold. `covariates` are the cells of the study's covariates, in its order.

    >>> Case("c1", "p1", "images/0001.dcm", label=(1,), split="train").site
    'unknown'
    """

    case_id: str
    patient_id: str
    image: str
    label: tuple[Label, ...]
    split: Split
    site: str = "unknown"
    study_uid: str = ""
    series_uid: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    uncertain: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()
    number: float | None = None
    covariates: tuple[str, ...] = ()

    @property
    def class_index(self) -> int:
        """The class of a case that has one; raises ValueError where it has none, or several labels."""
        (index,) = self.label
        if index is None:
            raise ValueError("the class is not known")
        return index


def label_table(cases: Iterable[Case]) -> NDArray[np.float64]:
    """The labels (N, K) of cases, NaN where one is not known: what forgets to ask becomes NaN, too.

    >>> label_table([Case("c", "p", "1.png", (1, None), "train")]).tolist()
    [[1.0, nan]]
    """
    return np.array([case.label for case in cases], np.float64)


@dataclass(frozen=True, slots=True)
class Volume:
    """The pixels of a scan and where they lie in the patient.

    `array` is float32, (C, H, W) for an image and (C, D, H, W) for a volume. `affine` (4, 4) maps an index
    (d, h, w, 1) to millimetres in DICOM's patient system LPS (PS3.3 C.7.6.2.1.1): first the position toward the
    patient's left, then posterior, then superior. An image has d = 0. `spacing_mm` follows the spatial axes of the
    array. `window` is (centre, width) in the unit of the array where the scan names one, and `window_function` what
    they mean (VOI LUT, PS3.3 C.11.2.1). `source` are facts of the file that identify nobody: format, device, age in
    years, where the spacing comes from. `background` (*space) is true where pixels show nothing (padding, PS3.3
    C.7.5.1.1.2), so that no statistic may count them. `channels` are the images that a case of several was stacked
    from, each (1, *space) on this grid, None for a missing one.

    >>> import numpy as np
    >>> ct = Volume(np.zeros((1, 40, 512, 512), np.float32), np.eye(4), spacing_mm=(5.0, 0.7, 0.7), modality="CT")
    >>> ct.spatial_dims
    3
    """

    array: FloatArray
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, ...]
    modality: str = ""
    window: tuple[float, float] | None = None
    source: dict[str, str] = field(default_factory=dict)
    window_function: WindowFunction = "LINEAR_EXACT"
    background: NDArray[np.bool_] | None = None
    channels: tuple[Volume | None, ...] = ()

    @property
    def spatial_dims(self) -> int:
        """2 for an image, 3 for a volume."""
        return self.array.ndim - 1

    @property
    def content(self) -> FloatArray:
        """The values that show something: the array itself, or (C, n) where it has a background."""
        return self.array if self.background is None else self.array[:, ~self.background]

    @property
    def has_spacing(self) -> bool:
        """Whether the file gives a spacing; else 1 mm is assumed (for non-square pixels: in one direction)."""
        return not self.source.get("spacing", "").startswith("unknown")


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits of one model on N cases, with all that a metric needs to know of them.

    `labels` is (N,) class indices, or (N, K) zeros and ones for a multi-label study, UNKNOWN where one is not known:
    read them as `medopt.metrics.calibration.truth` or `targets` does. `logits` is (N, K):
    K = 1 for a binary study. `subgroups` holds a column (N,) a variable (sex, scanner, ...): the group of each case,
    "" where it is not known. `numbers` (N,) are the true numbers of a regression study, whose logits are numbers in the
    unit of `medopt.core.number_scale.NumberScale`.
    """

    model: str
    case_id: NDArray[np.str_]
    patient_id: NDArray[np.str_]
    site: NDArray[np.str_]
    split: NDArray[np.str_]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    numbers: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.case_id)

    def where(self, mask: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """The rows at which `mask` (N,) is true, or the rows of an index array, in its order."""
        groups = {name: column[mask] for name, column in self.subgroups.items()}
        numbers = None if self.numbers is None else self.numbers[mask]
        return replace(self, subgroups=groups, numbers=numbers, **{name: getattr(self, name)[mask] for name in COLUMNS})

    @classmethod
    def joined(cls, model: str, parts: Sequence[Self]) -> Self:
        """The rows of several tables of `model`, one after the other.

        A subgroup column missing from a part is left empty for its rows.
        """
        variables = dict.fromkeys(name for part in parts for name in part.subgroups)
        groups = {
            name: np.concatenate([part.subgroups.get(name, np.full(len(part), "")) for part in parts])
            for name in variables
        }
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        numbers = [part.numbers for part in parts if part.numbers is not None]
        whole = np.concatenate(numbers) if len(numbers) == len(parts) else None
        return cls(model=model, subgroups=groups, numbers=whole, **columns)

    def of_split(self, split: Split) -> Self:
        """The rows of one split."""
        return self.where(self.split == split)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, on `n` cases. `value` is None where it is not defined, and `note` says why.

    `low` and `high` are None where there is no interval.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and it lies on one side of 0: what is asked of a difference."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class NotDefined:
    """What stands in the place of a result that cannot be computed: the reason."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    note: str


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch of training measured.

    `gpu_use` is the GPU's mean utilisation (0 to 1), `gpu_gib` the most memory of it so far; None without a GPU.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_metric: float
    learning_rate: float
    images_per_second: float
    seconds: float
    data_wait: float
    gpu_use: float | None = None
    gpu_gib: float | None = None


@dataclass(frozen=True, slots=True)
class PretrainingRecord:
    """What one epoch of pretraining without labels measured.

    `deviation` and `rank` say how far the embeddings differ (`medopt.training.self_supervised.Spread`). `neighbours` is
    the AUC of the nearest neighbours on labelled images; None in an epoch without a probe, or without labels.
    """

    epoch: int
    train_loss: float
    deviation: float
    rank: float
    neighbours: float | None
    learning_rate: float
    images_per_second: float
    seconds: float
    data_wait: float


@dataclass(frozen=True, slots=True)
class Override:
    """Who releases a model that a verdict did not pass, why, and when (ISO 8601).

    `model` is the SHA-256 of the one file for which it was given.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    by: str
    reason: str
    at: str
    model: str = ""

    @classmethod
    def now(cls, by: str, reason: str) -> Self:
        """Given at this moment, for the model that the run has or makes.

        Raises ConfigError where the name or the reason has neither letter nor digit.

        >>> Override.now(" A. Reader ", "for a reader study").by
        'A. Reader'
        """
        for what, text in (("name", by), ("reason", reason)):
            if not any(map(str.isalnum, text)):
                raise ConfigError(
                    f"An override takes the name of a person and a reason in words; the {what} is {text!r}."
                )
        return cls(by.strip(), reason.strip(), datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True, slots=True)
class StageRecord:
    """That a stage ran: the digest of what went in, the files that came out, how long it took, and what it came to.

    `settings` is the digest of the study's settings that it read; "" in records of version 0.1.0.
    """

    stage: str
    inputs: str
    outputs: dict[str, str]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    settings: str = ""


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` rows, `size` at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))

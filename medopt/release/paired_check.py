"""The guarantee of int8 checked again where a release starts: int8 here against what float answered at the build.

The images are the golden cases, prepared, and copies of them that were changed by arithmetic alone: mirrored, with less
and with more contrast, and mixed with another case. No patient is among them and none has a truth, so the check says
whether int8 still does what was measured at the build; it cannot show the AUC or the coverage anew. It sees a broken
engine, saturated arithmetic or another file: where int8 changes a share f of such answers, n images miss it with the
probability (1 - f)^n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import FloatArray, Kind
from medopt.core.result import Result
from medopt.metrics.thresholds import OperatingPoint
from medopt.metrics.weighted import Floats
from medopt.release.layout import ReleaseInfo
from medopt.release.predictor import Release

Cells = Mapping[str, str]
CONTRASTS = (0.6, 1.5)
DECIDES, COVERS, KEEPS = (
    "int8 decides as float",
    "int8 rules out no answer of float",
    "int8 keeps the probabilities of float",
)
"""The statements. The second is the one of prediction sets, with float's answer in the place of the truth."""
_UNDECIDED = -1


class PairedFigures(Result):
    """int8 in one engine against float, on the images whose answer is `sure`.

    `otherwise`: how many it answers otherwise, "undecided" included; `ruled_out`: to how many it gives another answer
    than float, leaving undecided being none. `shift` is the mean change of a probability on all images.
    """

    sure: tuple[bool, ...]
    otherwise: int
    ruled_out: int
    shift: float


class PairedRecord(Result):
    """What `golden.json` keeps of the build: the logits of float for each image, and int8's figures by engine."""

    float: tuple[tuple[float, ...], ...]
    int8: dict[str, PairedFigures]


@dataclass(frozen=True, slots=True)
class CheckedStatement:
    """A statement on so many golden `images` here: `figure` may be at most `bound`, which follows from the build."""

    statement: str
    model: str
    images: int
    figure: float
    bound: float

    @property
    def fault(self) -> str:
        """What is wrong; empty where it holds."""
        if self.figure <= self.bound:  # what is not a number does not hold
            return ""
        if self.statement == KEEPS:
            return f"{self.statement!r} (mean change {self.figure:.3g}, at most {self.bound:.3g})"
        return f"{self.statement!r} ({self.figure:g} of {self.images} golden images otherwise, at most {self.bound:g})"


def faults_of(statements: Sequence[CheckedStatement]) -> list[str]:
    """What does not hold here, in a sentence for each engine."""
    faults: dict[str, list[str]] = {}
    for one in statements:
        if one.fault:
            faults.setdefault(one.model, []).append(one.fault)
    return [f"the guarantee of {model} does not hold here: {', '.join(each)}" for model, each in faults.items()]


def changed_copies(images: FloatArray) -> Iterator[FloatArray]:
    """Golden images (N, C, *size) and their copies, 5 N of (C, *size): change by change, one in memory at a time."""

    def contrast(factor: float) -> Callable[[FloatArray, FloatArray], NDArray[np.floating]]:
        return lambda image, _: image.mean() + factor * (image - image.mean())

    changes: list[Callable[[FloatArray, FloatArray], NDArray[np.floating]]] = [
        lambda image, _: image,
        lambda image, _: image[..., ::-1],
        *map(contrast, CONTRASTS),
        lambda image, other: (image + other) / 2,
    ]
    for change in changes:
        for at, image in enumerate(images):
            yield np.ascontiguousarray(change(image, images[at - 1]), np.float32)


def paired_record(
    releases: Sequence[Release], images: FloatArray, cells: Sequence[Cells], tolerance: float
) -> PairedRecord | None:
    """The record of the build: each int8 model against the first float one; None where either is missing.

    By `tolerance` a probability may differ between processors.
    """
    before = next((one for one in releases if one.kind == "float"), None)
    after = [one for one in releases if one.kind == "int8"]
    if before is None or not after:
        return None
    info = before.info
    reference = _logits(before, images, cells)
    figures = {}
    for one in after:
        logits = _logits(one, images, cells)
        sure = _sure(info.models["int8"].operating_point, _probability(info, "int8", logits), tolerance)
        figures[one.engine.name] = _figures(info, reference, logits, sure)
    return PairedRecord(float=tuple(map(tuple, reference.tolist())), int8=figures)


def check_paired(
    record: PairedRecord, release: Release, images: FloatArray, cells: Sequence[Cells], tolerance: float
) -> list[CheckedStatement]:
    """The statements with the figures of here; none for the float model, or in an engine that is not in the record."""
    build = record.int8.get(release.engine.name) if release.kind == "int8" else None
    if build is None:
        return []
    logits, sure = _logits(release, images, cells), np.array(build.sure)
    here = _figures(release.info, np.array(record.float), logits, sure)
    name, count = f"int8/{release.engine.name}", int(sure.sum())
    return [
        CheckedStatement(DECIDES, name, count, here.otherwise, build.otherwise),
        CheckedStatement(COVERS, name, count, here.ruled_out, build.ruled_out),
        CheckedStatement(KEEPS, name, len(logits), here.shift, build.shift + tolerance),
    ]


def _logits(release: Release, images: FloatArray, cells: Sequence[Cells]) -> Floats:
    """Those of the images and their copies, (5 N, K)."""
    copies = enumerate(changed_copies(images))
    answers = [release.predict_batch(one[None], None, [cells[at % len(cells)]])[0] for at, one in copies]
    return np.array([one.logits for one in answers])


def _figures(info: ReleaseInfo, before: Floats, after: Floats, sure: NDArray[np.bool_]) -> PairedFigures:
    old, new = _probability(info, "float", before), _probability(info, "int8", after)
    answer = _answers(info.models["int8"].operating_point, new)
    reference = _answers(info.models["float"].operating_point, old)
    other = answer != reference
    ruled_out = other & (answer != _UNDECIDED) & (reference != _UNDECIDED)
    return PairedFigures(
        sure=tuple(sure.tolist()),
        otherwise=int(other.any(axis=1)[sure].sum()),
        ruled_out=int(ruled_out.any(axis=1)[sure].sum()),
        shift=float(np.abs(new - old).mean()),
    )


def _probability(info: ReleaseInfo, kind: Kind, logits: Floats) -> Floats:
    return np.asarray(info.models[kind].calibration.probabilities(logits, info.task), np.float64)


def _answers(point: OperatingPoint, probability: Floats) -> NDArray[np.int64]:
    """The class (N, 1), or 0 and 1 of each label (N, K); _UNDECIDED where it is left so."""
    decided = np.asarray(point.decide(probability)).reshape(len(probability), -1).astype(np.int64)
    undecided = np.asarray(point.undecided(probability)).reshape(len(probability), -1)
    return np.where(undecided, _UNDECIDED, decided)


def _sure(point: OperatingPoint, probability: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Images (N,) answered the same when a probability moves by twice the tolerance, as two do that move apart."""
    answers, sure = _answers(point, probability), np.ones(len(probability), dtype=bool)
    for output in range(probability.shape[1]):
        for step in (-2 * tolerance, 2 * tolerance):
            moved = probability.copy()
            moved[:, output] = np.clip(moved[:, output] + step, 0, 1)
            sure &= (_answers(point, moved) == answers).all(axis=1)
    return sure

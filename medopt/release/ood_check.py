"""The out-of-domain check: a release declines scans that are unlike those of its training.

It looks at three things. Its header: a modality, a pixel size or an image size that training did not have. Its content:
the distance of the network's last features from those of the training images, as a Gaussian with the few directions in
which they vary most and one variance for all others (probabilistic PCA, Tipping & Bishop 1999; the Mahalanobis
distance of Lee et al. 2018 where there are fewer images than features). Its texture: the same distance of how much
detail the image holds at four scales, since the last features of a network that is trained to ignore blur and noise do
not show them. Limits are quantiles of the distance on validation (of the texture on training, too), so that a chosen
share of good scans is declined.

The file holds means, a few directions and limits: no image and no patient's features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medopt.core.errors import ReleaseError
from medopt.core.records import FloatArray, Kind
from medopt.imaging.acquisition import Acquisition

Floats = NDArray[np.float64]
Span = tuple[float, float]
DIRECTIONS = 16  # measured: more detect no more, and with fewer rotated images pass
BANDS = 4
TINY = 1e-8
_MODALITIES = {
    "BI", "BMD", "CR", "CT", "DG", "DX", "ECG", "EM", "EPS", "ES", "GM", "HD", "IO", "IVOCT", "IVUS", "LS", "MG",
    "MR", "NM", "OAM", "OCT", "OP", "OPT", "OPTENF", "OPV", "PA", "PT", "PX", "RF", "RG", "RTDOSE", "RTIMAGE", "SC",
    "SM", "TG", "US", "VA", "XA", "XC", "OT",
}  # fmt: skip
"""Defined terms of Modality (0008,0060), PS3.3 C.7.3.1.1.1, for images."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeaderRules(_File):
    """What a scan's header may say. An empty list, or None for an axis, allows anything.

    `spacing_mm` and `shape` hold minimum and maximum for each axis, as in a `Volume`: those of training, further apart
    by the factor `margin` (None in a release of a version that did not write it).
    """

    modality: list[str] = []
    spacing_mm: list[Span] | None = None
    shape: list[Span] | None = None
    margin: float | None = None

    def refusal(self, acquisition: Acquisition) -> str:
        """Why a scan of this acquisition is declined; empty where it is not."""
        modality = acquisition.modality
        if self.modality and modality and modality not in self.modality:
            other = modality if modality in _MODALITIES else "another one"  # a header may hold anything there
            return f"its modality is {other}; accepted: {', '.join(self.modality)}, those of training"
        sizes = ((acquisition.spacing_mm, self.spacing_mm, "mm a pixel"), (acquisition.shape, self.shape, "pixels"))
        for values, spans, unit in sizes:
            if spans is None or len(values) != len(spans):
                continue
            for value, (minimum, maximum) in zip(values, spans, strict=True):
                if not minimum <= value <= maximum:
                    accepted = f"accepted {_rounded(minimum)} to {_rounded(maximum)}"
                    of_training = self._of_training(minimum, maximum)
                    return f"it has {_rounded(value)} {unit} along an axis; {accepted}{of_training}"
        return ""

    def _of_training(self, minimum: float, maximum: float) -> str:
        if not self.margin:
            return ""
        smallest, largest = _rounded(minimum * self.margin), _rounded(maximum / self.margin)
        return f" (training {smallest} to {largest}, +-{100 * (self.margin - 1):.0f} %)"


def _rounded(value: float) -> str:
    """Whole pixels from a hundred on, else three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Distance(_File):
    """How far a row of F features is from those of training: `mean` (F,), `directions` (k, F) with their `variances`.

    `rest` is the variance of all other directions, None where there are none. Above `threshold` a scan is declined.
    """

    mean: list[float]
    directions: list[list[float]]
    variances: list[float]
    rest: float | None
    threshold: float

    def of(self, rows: NDArray[np.floating]) -> Floats:
        """Squared distances (N,) of rows (N, F), in units of the variance of training; infinite where not finite.

        Raises ValueError where rows have another width.
        """
        away = np.asarray(rows, np.float64) - np.asarray(self.mean)
        along = away @ np.asarray(self.directions).T
        squared = (along**2 / self.variances).sum(axis=1)
        if self.rest is not None:
            squared += np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0) / self.rest
        return np.where(np.isfinite(squared), squared, np.inf)


class OutOfDomainCheck(_File):
    """`domain.json` of a release."""

    format: Literal[1] = 1
    false_alarm: Annotated[float, Field(gt=0, lt=1)]
    rules: HeaderRules
    content: dict[Kind, Distance]
    texture: Distance
    images: int = 0
    """How many images a case of several has; 0 where a case is one image."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of a release; raises ReleaseError where it is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise ReleaseError(f"{path} holds no out-of-domain check that this medopt can read ({first}).") from None

    def distances(self, kind: Kind, features: NDArray[np.floating], batch: FloatArray) -> Floats:
        """How far each image (N, 2) lies in content and in texture, in units of the limit."""
        content, detail = self.content[kind], self.texture
        columns = content.of(features) / content.threshold, detail.of(texture(batch, self.images)) / detail.threshold
        return np.stack(columns, axis=1)

    def reasons(self, batch: FloatArray, distances: Floats, acquisitions: Sequence[Acquisition | None]) -> list[str]:
        """Why each image of a prepared batch (N, C, *size) is declined; empty for those that are not.

        `distances` (N, 2) are the batch's; an acquisition is None where it is not known.
        """
        return [
            self._reason(image, content, detail, header)
            for image, (content, detail), header in zip(batch, distances.tolist(), acquisitions, strict=True)
        ]

    def _reason(self, image: FloatArray, content: float, detail: float, acquisition: Acquisition | None) -> str:
        if reason := blank(image, self.images) or (self.rules.refusal(acquisition) if acquisition else ""):
            return reason
        if content > 1:
            return f"it is unlike the training images (distance {content:.2g} times the limit)"
        if detail > 1:
            return (
                f"its sharpness or noise is unlike the training images' (distance {detail:.2g} times the limit): "
                "another device or processing, motion, or a damaged file"
            )
        return ""


def blank(image: FloatArray, images: int = 0) -> str:
    """Why a prepared image (C, *size) that is uniform or not finite is declined; empty for any other.

    `images` is how many images a case of several has, each of which is looked at.
    """
    if not np.isfinite(image).all():
        return "it holds values that are not finite numbers"
    parts = _shown(image, images) if images else [image]
    uniform = any(part.min() == part.max() for part in parts)
    what = "one of its images" if images else "it"
    return f"{what} is blank: every pixel has the same value" if uniform else ""


def _shown(image: FloatArray, images: int) -> FloatArray:
    """The images (K, *size) of a prepared case (C, *size) that are there: masks behind them tell which are missing."""
    if not images or len(image) == images:
        return image
    return image[:images][image[images:].any(axis=tuple(range(1, image.ndim)))]


def texture(batch: FloatArray, images: int = 0) -> Floats:
    """How much detail each image (N, C, *size) holds at four scales: (N, 4) logarithms of mean squares.

    A band is what is lost when pixels are averaged two by two (by two) and the image is then halved, as in a Laplacian
    pyramid (Burt & Adelson 1983) with the simplest filter. The chain's padding is left out: its edge would weigh more
    than all of a small scan's noise. Of a case of several `images` it is that of their mean.
    """
    means = [_shown(image, images).mean(axis=0, dtype=np.float64) for image in batch]
    return np.array([_bands(_inside(image)) for image in means])


def _inside(image: Floats) -> Floats:
    """The smallest box (*space) around all nonzero pixels; the whole image where a side of the box is below 4."""
    box = []
    for axis in range(image.ndim):
        (places,) = np.nonzero(image.any(axis=tuple(other for other in range(image.ndim) if other != axis)))
        box.append(slice(places[0], places[-1] + 1) if len(places) else slice(0, 0))
    cropped = image[tuple(box)]
    return cropped if min(cropped.shape) >= 4 else image


def _bands(image: Floats) -> list[float]:
    bands: list[float] = []
    while len(bands) < BANDS and min(image.shape) >= 2:
        image = image[tuple(slice(0, n - n % 2) for n in image.shape)]
        halved = _halved(image)
        # The mean square of what the averaging lost, without making the difference itself.
        lost = float((image**2).mean() - (halved**2).mean())
        bands.append(math.log(max(lost, 0.0) + TINY))
        image = halved
    return bands + bands[-1:] * (BANDS - len(bands))


def _halved(image: Floats) -> Floats:
    for axis in range(image.ndim):
        shape = image.shape
        image = image.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :]).mean(axis=axis + 1)
    return image


def fit_rules(acquisitions: Sequence[Acquisition], margin: float) -> HeaderRules:
    """What the headers of training images allow.

    A modality is demanded where every image names one. Sizes may exceed those seen by the factor `margin`; they are not
    judged where one image lacks them or has other axes.
    """
    modalities = [acquisition.modality for acquisition in acquisitions]
    return HeaderRules(
        modality=sorted(set(modalities)) if acquisitions and all(modalities) else [],
        spacing_mm=_spans([acquisition.spacing_mm for acquisition in acquisitions], margin),
        shape=_spans([acquisition.shape for acquisition in acquisitions], margin),
        margin=margin if acquisitions else None,
    )


def _spans(values: Sequence[Any], margin: float) -> list[Span] | None:
    if not values or not all(values) or len({len(value) for value in values}) > 1:
        return None
    table = np.array(values, float)
    return [(float(a), float(b)) for a, b in zip(table.min(axis=0) / margin, table.max(axis=0) * margin, strict=True)]


def fit_distance(train: NDArray[np.floating], val: Sequence[NDArray[np.floating]], false_alarm: float) -> Distance:
    """The Gaussian of training rows (N, F), and the threshold that declines `false_alarm` of validation rows (M, F).

    `val` holds the validation rows as each engine computes them: int8 rounds differently from engine to engine, by a
    tenth of the distance. The largest threshold is taken, so that no engine declines more.

    The threshold is the conformal quantile, which holds for the next case of the same kind (Vovk et al. 2005: rank
    (M + 1)(1 - false_alarm), rounded up); with too few validation rows for that, the largest distance among them.
    """
    rows = np.asarray(train, np.float64)
    mean, width = rows.mean(axis=0), rows.shape[1]
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    variances = singular**2 / max(1, len(rows) - 1)
    floor = max(TINY, 1e-4 * float(variances.sum()) / width)  # a figure that never varied in training may vary a little
    kept = min(width, DIRECTIONS, max(1, len(rows) // 4), len(variances))
    rest = None if kept == width else max(floor, float(variances[kept:].sum()) / (width - kept))
    fitted = Distance(
        mean=_short(mean),
        directions=[_short(direction) for direction in directions[:kept]],
        variances=_short(np.maximum(variances[:kept], floor)),
        rest=rest,
        threshold=1.0,
    )
    limits = [_limit(fitted.of(engine_rows), false_alarm) for engine_rows in val]
    return fitted.model_copy(update={"threshold": max(*limits, TINY)})


def _limit(distances: Floats, false_alarm: float) -> float:
    rank = min(len(distances), math.ceil((len(distances) + 1) * (1 - false_alarm)))
    return float(np.sort(distances)[rank - 1])


def _short(values: NDArray[np.floating]) -> list[float]:
    """Six digits, as float32 holds them: a third of the file."""
    return [float(f"{value:.6g}") for value in values]

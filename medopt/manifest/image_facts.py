"""What the images of a manifest are: each is read once with `read_scan`; small facts and a thumbnail of it are kept.

100 000 images take some 400 MB of memory here, whatever their size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medopt.config import Prepare
from medopt.core.errors import DataError
from medopt.core.privacy import pseudonym
from medopt.core.records import Case, FloatArray
from medopt.core.reporter import Reporter, SilentReporter
from medopt.imaging.background import nan_as_background
from medopt.imaging.channels import read_case
from medopt.imaging.parallel import parallel_map
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.scan import read_scan
from medopt.imaging.scan_path import files_below, npz_member, split_part
from medopt.imaging.series_index import is_capture, series_files
from medopt.manifest.duplicates import thumbnail
from medopt.manifest.findings import display_name
from medopt.manifest.table import single_images
from medopt.manifest.trivial_facts import KEYWORDS, TrivialFacts, trivial_facts, with_missing

AIR = -950.0
"""HU below which there is air, and no lung that holds blood."""
MIN_TISSUE = 0.01
"""Share of the values below which percentiles of tissue say nothing."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is kept of one image. `problem` says why it cannot be used; the rest may then be empty.

    `size` (pixels) and `spacing_mm` follow the spatial axes of the array; `spacing_mm` is empty where the file gives no
    spacing. `aspect` is the height of an image's pixels over their width. `colour` is true where channels differ,
    `eight_bit` where all values are whole numbers from 0 to 255; `low` and `high` are the 0.5 and 99.5 percentiles of a
    sample of the values; padding does not count, nor what is not a number, which `nan` tells of. `digest` is of the
    decoded pixels.
    """

    problem: str = ""
    unreadable: bool = False
    size: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    aspect: float = 1.0
    nan: bool = False
    modality: str = ""
    burned_in: bool = False
    capture: bool = False
    """A secondary capture or a document, by its header."""
    intent: str = ""
    """PRESENTATION or PROCESSING, where a projection image says it."""
    colour: bool = False
    eight_bit: bool = False
    low: float = 0.0
    high: float = 0.0
    tissue: tuple[float, float] | None = None
    """Of a CT the 0.5 and 99.5 percentiles of the voxels above AIR, without air around the patient and in the gut."""
    digest: str = ""
    thumbnail: FloatArray | None = None
    trivial: TrivialFacts | None = None
    channels: tuple[ImageFacts | None, ...] = ()
    """Of a case of several images: the facts of each, None for a missing one; the case has what one of them has."""

    def at(self, place: int) -> ImageFacts | None:
        """The facts of one image of a case of several, None where it is missing; else these facts."""
        return self.channels[place] if self.channels else self

    @property
    def images(self) -> tuple[ImageFacts, ...]:
        """The facts of each image of a case of several that is there; else these facts."""
        return tuple(fact for fact in self.channels if fact is not None) or (self,)


def read_facts(
    cases: Sequence[Case],
    folder: Path,
    reporter: Reporter | None = None,
    workers: int | None = None,
    prepare: Prepare | None = None,
) -> list[ImageFacts]:
    """The facts of every image below `folder`, in the order of the cases.

    They are read in `workers` processes, or one per core. An image that cannot be read has a `problem`, and nothing is
    raised for it. `prepare` says which images make up a case, where there are several.
    """
    advance, facts = (reporter or SilentReporter()).progress(len(cases), "reading images"), []
    for fact in parallel_map(lambda case: read_image(case, folder, prepare), cases, workers):
        facts.append(fact)
        advance(1)
    return facts


def read_image(case: Case, folder: Path, prepare: Prepare | None = None) -> ImageFacts:
    """Read one image and keep little of it; of a case of several images read all of them.

    The size, the spacing, the values and the thumbnail of a case are those of its first image. A `problem` names the
    image by its number. `prepare` says how the grids of a case may differ.
    """
    if not case.channels:
        return _read_image(case, folder)
    single = {one.image: _read_image(one, folder) for one in single_images(case)}
    channels = tuple(single.get(image) for image in case.channels)
    seen: dict[str, int] = {}
    for number, fact in enumerate(channels, start=1):
        if fact is not None and fact.problem:
            problem = fact.problem if fact.unreadable else f"image {number} of the case {fact.problem}"
            return replace(fact, problem=problem)
        if fact is not None and (other := seen.setdefault(fact.digest, number)) != number:
            problem = f"{display_name(case)}: image {number} of the case has the same pixels as image {other}."
            return ImageFacts(problem=problem, unreadable=True)
    if prepare is not None and (problem := _grid_problem(case, folder, prepare)):
        return ImageFacts(problem=problem, unreadable=True)
    facts = list(single.values())
    return replace(
        facts[0],
        trivial=with_missing(facts[0].trivial, case.channels),
        digest=hashlib.blake2b("".join(fact.digest for fact in facts).encode(), digest_size=16).hexdigest(),
        nan=any(fact.nan for fact in facts),
        modality="+".join(dict.fromkeys(fact.modality for fact in facts if fact.modality)),
        burned_in=any(fact.burned_in for fact in facts),
        capture=any(fact.capture for fact in facts),
        colour=any(fact.colour for fact in facts),
        channels=channels,
    )


def _grid_problem(case: Case, folder: Path, prepare: Prepare) -> str:
    """Why the images of a case cannot be stacked; empty where they can."""
    try:
        paths = tuple(f"{folder / image}" if image else "" for image in case.channels)
        read_case(paths, prepare)
    except DataError as error:
        return _without_identifiers(str(error), case, folder)
    return ""


def _read_image(case: Case, folder: Path) -> ImageFacts:
    try:
        volume = read_scan(case.image, data=folder)
    except DataError as error:
        return ImageFacts(problem=_without_identifiers(str(error), case, folder), unreadable=True)
    array, size, has_nan = volume.array, volume.array.shape[1:], bool(np.isnan(volume.array.sum()))
    if has_nan:
        if np.isnan(array).all():
            return ImageFacts(problem="has no pixel that is a number (all are NaN)", size=size)
        volume = nan_as_background(volume)
    content = volume.content
    if not np.isfinite(content).all():
        return ImageFacts(problem="has pixels that are infinite", size=size)
    if content.min() == content.max():
        return ImageFacts(problem=f"is constant: all pixels are {content.flat[0]:g}", size=size)
    sample = content.reshape(-1)[:: content.size // 100_000 + 1]
    low, high = np.percentile(sample, [0.5, 99.5])
    body = sample[sample > AIR] if volume.modality == "CT" else sample[:0]
    whole = bool((sample == np.rint(sample)).all())
    headers = _headers(case, folder) if volume.source.get("format") == "DICOM" else []
    intents = {str(header.get("PresentationIntentType") or "").upper().removeprefix("FOR ") for header in headers}
    return ImageFacts(
        size=size,
        spacing_mm=volume.spacing_mm if volume.has_spacing else (),
        aspect=volume.spacing_mm[0] / volume.spacing_mm[1] if volume.spatial_dims == 2 else 1.0,
        nan=has_nan,
        modality=volume.modality,
        burned_in=any(str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES" for header in headers),
        capture=any(map(is_capture, headers)),
        intent=intents.pop() if len(intents) == 1 else "",
        colour=array.shape[0] == 3 and bool(np.ptp(array, axis=0).max() > 0),
        eight_bit=whole and bool(content.min() >= 0 and content.max() <= 255),
        low=float(low),
        high=float(high),
        tissue=tuple(np.percentile(body, [0.5, 99.5]).tolist()) if body.size > MIN_TISSUE * sample.size else None,
        digest=pixel_digest(array),
        thumbnail=thumbnail(array),
        trivial=trivial_facts(volume, headers, file_size(case, folder)),
    )


def pixel_digest(array: FloatArray) -> str:
    """A hash of shape and values: the same for the same pixels in whatever file format."""
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _without_identifiers(text: str, case: Case, folder: Path) -> str:
    """An error of the reader, with the image by its display name; files of a series may be named by UIDs."""
    named = text
    for one in single_images(case):
        named = named.replace(str(folder / one.image), display_name(one)).replace(one.image, display_name(one))
    return re.sub(r"\b[0-9]+(\.[0-9]+){5,}\b", lambda match: pseudonym(match.group()), named)


def _files(case: Case, folder: Path) -> Sequence[Path]:
    container, series = split_part(folder / case.image)
    if container.is_file():
        return [container]
    return series_files(container, series) if series else list(map(container.joinpath, files_below(container)))


def file_size(case: Case, folder: Path) -> int | None:
    """The bytes of an image's files; None for one of several images of an archive, and where it cannot be told."""
    if npz_member(case.image) is not None:
        return None
    try:
        return sum(path.stat().st_size for path in _files(case, folder))
    except OSError:
        return None


_KEYWORDS = ("BurnedInAnnotation", "SOPClassUID", "Modality", "ConversionType", "PresentationIntentType", *KEYWORDS)


def _headers(case: Case, folder: Path) -> list[Dataset]:
    """What the files of an image say of their making: BurnedInAnnotation (PS3.3 C.7.6.1.1), PresentationIntentType."""
    headers = []
    for path in _files(case, folder):
        try:
            headers.append(parse_dicom(path, stop_before_pixels=True, force=True, specific_tags=list(_KEYWORDS)))
        except Exception:  # a file that cannot be read was refused before, or is not an image of the series
            continue
    return headers

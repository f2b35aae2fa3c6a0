"""What the images of a manifest are: each read once through the one door, small facts and a thumbnail of it kept.

100 000 images take some 400 MB here, whatever their size.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import DataError, listed
from medopt.core.privacy import pseudonym
from medopt.core.records import SPLITS, Case, FloatArray
from medopt.core.reporter import Reporter, SilentReporter
from medopt.imaging import read_scan
from medopt.imaging.parallel import parallel_map
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.scan_path import parted
from medopt.imaging.series_index import series_files
from medopt.manifest.check import Finding, accept, check_cases, missing_images, shown_name
from medopt.manifest.duplicates import Pair, duplicate_findings, find_pairs, thumbnail

DEVIATIONS = 5.0
"""An outlier lies further than this many MADs (median absolute deviation, times 1.4826) from the median, in log."""
LEAST_DEVIATION = 0.05
"""Least MAD in log: where most images are equal, one that is 25 % off is still none worth a look."""
MINORITY = 0.05
"""A modality that fewer than this share of the images have does not belong, unless it is one of projections."""
_PROJECTIONS = frozenset({"CR", "DX", "RG"})  # one kind of picture under three names


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is kept of one image. `problem` says why it cannot be used; then the rest may be empty.

    `size` and `spacing_mm` follow the array's spatial axes; `spacing_mm` is empty where the file does not say it.
    `colour` says that channels differ; `eight_bit` that all values are whole and from 0 to 255; `low` and `high` are
    the 0.5 and 99.5 percentiles of a sample of the values. `digest` is of the decoded pixels.
    """

    problem: str = ""
    unreadable: bool = False
    size: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    modality: str = ""
    burned_in: bool = False
    colour: bool = False
    eight_bit: bool = False
    low: float = 0.0
    high: float = 0.0
    digest: str = ""
    thumbnail: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class ImageInspection:
    """All that is known of a manifest's images, and all that is wrong with them."""

    cases: tuple[Case, ...]
    facts: tuple[ImageFacts, ...]
    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]

    @property
    def thumbnails(self) -> dict[int, FloatArray]:
        """By row; an image that cannot be used has none."""
        return {row: one.thumbnail for row, one in enumerate(self.facts) if one.thumbnail is not None}

    @property
    def refused(self) -> list[Finding]:
        """The findings that refuse the manifest."""
        return [finding for finding in self.findings if finding.severity == "refuse"]


def inspect(
    cases: Sequence[Case], facts: Sequence[ImageFacts], folder: Path, study: Study, dims: int | None = None
) -> ImageInspection:
    """Every finding on cases and images, what the study accepts as notes. Raises ConfigError as `check_cases` does."""
    thumbnails = {row: one.thumbnail for row, one in enumerate(facts) if one.thumbnail is not None}
    pairs = find_pairs(thumbnails, lambda row: facts[row].digest)
    pixels = quality_findings(cases, facts, missing_images(cases, folder), dims)
    findings = [*check_cases(cases, folder, study), *accept([*duplicate_findings(cases, pairs), *pixels], study)]
    return ImageInspection(tuple(cases), tuple(facts), tuple(pairs), tuple(findings))


def read_facts(
    cases: Sequence[Case], folder: Path, reporter: Reporter | None = None, workers: int | None = None
) -> list[ImageFacts]:
    """The facts of every image below `folder`, in the order of the cases; an image that cannot be read says why."""
    advance, found = (reporter or SilentReporter()).progress(len(cases), "reading images"), []
    for one in parallel_map(lambda case: image_facts(case, folder), cases, workers):
        found.append(one)
        advance(1)
    return found


def image_facts(case: Case, folder: Path) -> ImageFacts:
    """Read one image whole and keep little of it."""
    try:
        volume = read_scan(case.image, data=folder)
    except DataError as error:
        return ImageFacts(problem=_private(str(error), case, folder), unreadable=True)
    array, size = volume.array, volume.array.shape[1:]
    if not np.isfinite(array).all():
        return ImageFacts(problem="has pixels that are not numbers (NaN or infinite)", size=size)
    if array.min() == array.max():
        return ImageFacts(problem=f"is constant: all pixels are {array.flat[0]:g}", size=size)
    sample = array.reshape(-1)[:: array.size // 100_000 + 1]
    low, high = np.percentile(sample, [0.5, 99.5])
    whole = bool((sample == np.rint(sample)).all())
    knows_spacing = not volume.source.get("spacing", "").startswith("unknown")
    is_dicom = volume.source.get("format") == "DICOM"
    return ImageFacts(
        size=size,
        spacing_mm=volume.spacing_mm if knows_spacing else (),
        modality=volume.modality,
        burned_in=is_dicom and any(map(_burned_in, _files(case, folder))),
        colour=array.shape[0] == 3 and bool(np.ptp(array, axis=0).max() > 0),
        eight_bit=whole and bool(array.min() >= 0 and array.max() <= 255),
        low=float(low),
        high=float(high),
        digest=pixel_digest(array),
        thumbnail=thumbnail(array),
    )


def pixel_digest(array: FloatArray) -> str:
    """A hash of shape and values: the same for the same pixels in whatever file format."""
    found = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _private(text: str, case: Case, folder: Path) -> str:
    """An error of the reader, with the image named as it may be shown; files of a series may be called by UIDs."""
    named = text.replace(str(folder / case.image), shown_name(case)).replace(case.image, shown_name(case))
    return re.sub(r"\b[0-9]+(\.[0-9]+){5,}\b", lambda found: pseudonym(found.group()), named)


def _files(case: Case, folder: Path) -> Sequence[Path]:
    place, series = parted(folder / case.image)
    if place.is_file():
        return [place]
    return series_files(place, series) if series else [path for path in place.rglob("*") if path.is_file()]


def _burned_in(path: Path) -> bool:
    """BurnedInAnnotation (0028,0301), PS3.3 C.7.6.1.1: the pixels may show who the patient is."""
    try:
        header = parse_dicom(path, stop_before_pixels=True, force=True, specific_tags=["BurnedInAnnotation"])
        return str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES"
    except Exception:  # what cannot be read was refused before, or is no image of the series
        return False


def quality_findings(
    cases: Sequence[Case], facts: Sequence[ImageFacts], missing: Mapping[int, str], dims: int | None = None
) -> list[Finding]:
    """Everything that the images themselves show to be wrong.

    `missing` are the images that were found absent before, and are not told again. `dims` is 2 or 3 where the study
    says it; else most images decide.
    """
    named = [(row, shown_name(case), one) for row, (case, one) in enumerate(zip(cases, facts, strict=True))]
    found = []
    if texts := [one.problem for row, _, one in named if one.unreadable and row not in missing]:
        found.append(_refused("unreadable", texts, "images cannot be read", "Get them again, or drop them: --fix."))
    if texts := [f"{name} {one.problem}" for _, name, one in named if one.problem and not one.unreadable]:
        found.append(_refused("no_content", texts, "images show nothing", "Drop them: --fix."))
    if flagged := [name for _, name, one in named if one.burned_in]:
        text = f"{len(flagged)} images have text burned into their pixels, says their header: {listed(flagged)}. "
        found.append(Finding("burned_in", "note", text + "It may name the patient, or tell the label."))
    return [*found, *_strangers(cases, facts, dims), *_outliers(cases, facts)]


def unusable(facts: Sequence[ImageFacts], dims: int | None = None) -> dict[int, str]:
    """The images that cannot be trained on, by row, with the reason."""
    strange = dict.fromkeys(strange_dimensions(facts, dims), "neither a volume among volumes nor an image among images")
    return strange | {row: one.problem for row, one in enumerate(facts) if one.problem}


def _refused(name: str, texts: Sequence[str], what: str, way_out: str) -> Finding:
    return Finding(name, "refuse", f"{len(texts)} {what}: {listed(list(texts)).rstrip('.')}. {way_out}")


def strange_dimensions(facts: Sequence[ImageFacts], dims: int | None = None) -> list[int]:
    """The rows of volumes among images, or of images among volumes."""
    counts = Counter(len(one.size) for one in facts if one.size)
    if not counts:
        return []
    wanted = dims or counts.most_common(1)[0][0]
    return [row for row, one in enumerate(facts) if one.size and len(one.size) != wanted]


def _strangers(cases: Sequence[Case], facts: Sequence[ImageFacts], dims: int | None) -> Iterator[Finding]:
    """Images of another kind than the rest."""
    if rows := strange_dimensions(facts, dims):
        shown = [f"{shown_name(cases[row])} ({' x '.join(map(str, facts[row].size))})" for row in rows]
        kind = "2-D where volumes" if len(facts[rows[0]].size) == 2 else "3-D where images"
        yield _refused("mixed_dimensions", shown, f"images are {kind} are asked for", "Drop them: --fix.")
    kinds = ["CR/DX" if one.modality in _PROJECTIONS else one.modality for one in facts]
    counts = Counter(kind for kind in kinds if kind)
    total = sum(counts.values())
    if rare := {kind for kind, count in counts.items() if count < MINORITY * total}:
        shown = [f"{shown_name(case)} ({kind})" for case, kind in zip(cases, kinds, strict=True) if kind in rare]
        most = counts.most_common(1)[0][0]
        yield _refused("minority_modality", shown, f"images are of another modality than {most}", "Do they belong?")


def _outliers(cases: Sequence[Case], facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Sizes and spacings far from the median."""
    rule = f"over {DEVIATIONS:g} MAD from the median, in log"
    for name, what, columns in (
        ("size_outliers", "size", [one.size for one in facts]),
        ("spacing_outliers", "spacing", [one.spacing_mm for one in facts]),
    ):
        rows = sorted({row for dims in (2, 3) for row in far_from_median(columns, dims)})
        if rows:
            shown = [f"{shown_name(cases[r])} ({' x '.join(f'{side:g}' for side in columns[r])})" for r in rows]
            text = f"{len(rows)} images have an unusual {what} ({rule}): {listed(shown)}."
            yield Finding(name, "note", text)


def far_from_median(values: Sequence[tuple[float, ...]], dims: int) -> list[int]:
    """The rows of which an axis lies over `DEVIATIONS` MADs from that axis's median, in log; others are left out."""
    rows = [row for row, value in enumerate(values) if len(value) == dims and min(value) > 0]
    if len(rows) < 3:
        return []
    logs: NDArray[np.float64] = np.log([values[row] for row in rows])
    away = np.abs(logs - np.median(logs, axis=0))
    spread = np.maximum(1.4826 * np.median(away, axis=0), LEAST_DEVIATION)
    return [rows[at] for at in np.flatnonzero((away > DEVIATIONS * spread).any(axis=1))]


def balance(cases: Sequence[Case], study: Study) -> list[dict[str, str | int]]:
    """How many images of each label each site gives to each split: one row a split and site, and one a split."""
    several, names = study.data.task == "multilabel", study.data.labels
    totals: Counter[tuple[str, str]] = Counter()
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    sites = sorted({case.site for case in cases})
    for case in cases:
        present = (name for name, value in zip(names, case.label, strict=False) if value)
        held = list(present) if several else [names[case.label[0]]]
        for site in (case.site, "all"):
            totals[case.split, site] += 1
            counts[case.split, site].update(held)
    rows: list[dict[str, str | int]] = []
    for split in SPLITS:
        for site in ("all", *sites) if len(sites) > 1 else ("all",):
            row: dict[str, str | int] = {"split": split, "site": site, "images": totals[split, site]}
            rows.append(row | {name: counts[split, site][name] for name in names})
    return rows

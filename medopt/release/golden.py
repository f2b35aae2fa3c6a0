"""Golden cases: drawn scans with the answers that the release gave when it was built.

They are drawn, never a patient's, because a release leaves the hospital. Replaying them proves that this machine reads,
prepares and judges files as the machine that built the release did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medopt.config import Prepare
from medopt.core.errors import ReleaseError, listed
from medopt.core.files import write_json
from medopt.core.records import FloatArray, Volume
from medopt.imaging import read_scan
from medopt.imaging.channels import read_channels
from medopt.manifest.covariates import CovariateEncoder
from medopt.phantom import write_radiograph
from medopt.release.layout import GOLDEN, Kind, ReleaseInfo, check_sums, read_info
from medopt.release.paired_check import CheckedStatement, PairedRecord, check_paired, faults_of, paired_record
from medopt.release.predictor import Release, decisions_of
from medopt.transforms.prepare import PrepareChain

COUNT = 3
# int8 arithmetic differs a little between processors (VNNI, AVX2) and engines; the prepared pixels may not.
PROBABILITY_TOLERANCE = 0.02
PIXEL_TOLERANCE = 1e-4


def draw_golden(folder: Path, prepare: Prepare, seed: int = 0) -> list[Path]:
    """Draw the scans: DICOM radiographs for a 2-D study, NIfTI volumes for a 3-D one.

    Of a case of several images its path is what the names of their files begin with.
    """
    import nibabel  # only building a release draws them

    folder.mkdir(parents=True, exist_ok=True)
    names = prepare.channel_names
    paths = []
    for index in range(COUNT):
        path = folder / f"case-{index + 1}"
        for place, name in enumerate(names or ("",)):
            random = np.random.default_rng((seed, index, place) if name else (seed, index))
            file = folder / f"{path.name}-{name}" if name else path
            if len(prepare.size) == 3:
                file = file.with_name(f"{file.name}.nii.gz")
                scan = nibabel.Nifti1Image((1000 * _blobs((48, 56, 52), random)).astype(np.int16), np.eye(4))
                nibabel.save(scan, file)
            else:
                file = write_radiograph(file.with_name(f"{file.name}.dcm"), _blobs((320, 288), random))
        paths.append(path if names else file)
    return paths


def _blobs(shape: tuple[int, ...], random: np.random.Generator) -> FloatArray:
    """Smooth bright blobs on a gradient with a little grain, 0 to 1."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    out = 0.2 * axes[-1] + 0.02 * random.standard_normal(shape)
    for _ in range(6):
        center, radius = random.uniform(-0.7, 0.7, len(shape)), random.uniform(0.05, 0.4)
        distance = sum((axis - at) ** 2 for axis, at in zip(axes, center, strict=True))
        out = out + random.uniform(0.1, 0.5) * np.exp(-distance / radius**2)
    return ((out - out.min()) / (out.max() - out.min())).astype(np.float32)


def record_answers(folder: Path, releases: list[Release], scans: list[Path]) -> None:
    """Write `golden.json`: for every scan a summary of the prepared pixels, and the answer of each model and engine.

    Of an answer: the probabilities, and what is decided by them, "undecided" included, were the scan not declined. And
    how int8 answers beside float (`medopt.release.paired_check`).
    """
    cases = list[dict[str, object]]()
    for path in scans:
        scan = _read(path, releases[0].info.prepare)
        cells = _cells(releases[0].info, len(cases))
        answers = {_model(p): p.predict(scan, cells).probabilities for p in releases}
        decisions = {_model(p): _decision(p, answers[_model(p)]) for p in releases}
        name = path.relative_to(folder).as_posix()
        pixels = _pixels(releases[0], scan)
        cases.append({"scan": name, "pixels": pixels, "answers": answers, "decisions": decisions})
    tolerance = {"probability": PROBABILITY_TOLERANCE, "pixels": PIXEL_TOLERANCE}
    info, chain = releases[0].info, releases[0].chain
    images = np.stack([chain(_read(path, info.prepare)).numpy() for path in scans])
    paired = paired_record(releases, images, _cells_of(info, len(scans)), PROBABILITY_TOLERANCE)
    more = {} if paired is None else {"paired": paired.json_values()}
    write_json(folder / GOLDEN, {"tolerance": tolerance, "cases": cases} | more)


def _cells(info: ReleaseInfo, number: int) -> dict[str, str]:
    """The covariates that a golden case is answered with: within the range of training, and none of a patient's."""
    return CovariateEncoder(info.covariates).example(number)


def _cells_of(info: ReleaseInfo, cases: int) -> list[dict[str, str]]:
    return [_cells(info, number) for number in range(cases)]


def _model(release: Release) -> str:
    return f"{release.kind}/{release.engine.name}"


def _decision(release: Release, probabilities: Mapping[str, float]) -> str:
    info = release.info
    table = np.array([[probabilities[label] for label in info.reported_labels]])
    (decision,) = decisions_of(info.labels, info.task, info.models[release.kind].operating_point, table)
    return decision


def golden_scans(folder: Path, prepare: Prepare | None = None) -> list[Volume]:
    """The golden scans of a release, read; `prepare` names the images of a case where there are several."""
    return [_read(path, prepare) for path in _places(folder)]


def _places(folder: Path) -> list[Path]:
    cases = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))["cases"]
    return [folder / case["scan"] for case in cases]


def first_case(folder: Path, names: Sequence[str]) -> list[Path]:
    """The file of the first golden scan, or its files in the order of the images' `names`."""
    return _files(_places(folder)[0], names)


def _files(path: Path, names: Sequence[str]) -> list[Path]:
    return [next(path.parent.glob(f"{path.name}-{name}.*")) for name in names] or [path]


def golden_batch(folder: Path, chain: PrepareChain) -> FloatArray:
    """The golden scans, prepared: (N, C, *size)."""
    return np.stack([chain(scan).numpy() for scan in golden_scans(folder, chain.config)])


def _read(path: Path, prepare: Prepare | None) -> Volume:
    """A golden scan. NIfTI has no window, so a study that uses the scan's own window gets the one it was drawn with."""
    if prepare is None or not prepare.channel_names:
        return _with_window(read_scan(path))
    volume = read_channels(_files(path, prepare.channel_names), prepare.channel_names)
    return replace(volume, channels=tuple(one and _with_window(one) for one in volume.channels))


def _with_window(volume: Volume) -> Volume:
    return volume if volume.window else replace(volume, window=(500, 1000))


def _pixels(release: Release, scan: Volume) -> list[float]:
    """Mean, standard deviation and 16 sampled values of the prepared image."""
    image = release.chain(scan).numpy()
    sampled = image.ravel()[np.linspace(0, image.size - 1, 16).astype(int)]
    return [float(image.mean()), float(image.std()), *(float(value) for value in sampled)]


@dataclass(frozen=True, slots=True)
class ReplayedCase:
    """A golden case, predicted again: the scan's path, model and engine, and how far its answer is from the build's."""

    case: str
    model: str
    difference: float
    """The largest of its labels' probabilities."""
    probability: dict[str, float]


class Replay(NamedTuple):
    """The golden cases, one for each scan, model and engine, and the statements of the guarantee that hold here.

    There are none of a release without a record of them, or where no int8 model was opened.
    """

    cases: list[ReplayedCase]
    statements: list[CheckedStatement]


def replay(folder: Path, info: ReleaseInfo, releases: list[Release]) -> Replay:
    """Predict every golden case with each opened release, and compare with the answers of the build.

    Raises ReleaseError where prepared pixels or probabilities are not those of the build, or are decided otherwise, and
    where a statement of the guarantee does not hold on this machine.
    """
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    statements = _statements(folder, golden, info, releases)
    replayed, pixel_faults, faults = [], list[str](), faults_of(statements)
    for number, case in enumerate(golden["cases"]):
        scan = _read(folder / case["scan"], info.prepare)
        pixels = float(np.abs(np.subtract(_pixels(releases[0], scan), case["pixels"])).max())
        if not pixels <= golden["tolerance"]["pixels"]:
            pixel_faults.append(f"{case['scan']}: prepared pixels differ by {pixels:.2g}")
        for release in releases:
            model = _model(release)
            probability = release.predict(scan, _cells(info, number)).probabilities
            expected = case["answers"][model]
            difference = max(abs(probability[label] - expected[label]) for label in info.labels)
            replayed.append(ReplayedCase(case["scan"], model, difference, probability))
            if not difference <= golden["tolerance"]["probability"]:
                faults.append(f"{case['scan']}: {model} answers differ by {difference:.3f}")
            decided = case.get("decisions", {}).get(model)  # of the build's probabilities: those of here may be rounded
            if decided is not None and decided != _decision(release, expected):
                faults.append(f"{case['scan']}: {model} decides {_decision(release, expected)!r}, not {decided!r}")
    if faults := pixel_faults or faults:  # answers to other pixels say nothing more
        raise ReleaseError(
            f"The release {folder} does not answer its golden cases as when it was built: {listed(faults)}. "
            "It may not serve on this machine; compare the package versions in release.json with those here."
        )
    return Replay(replayed, statements)


def _statements(
    folder: Path, golden: dict[str, Any], info: ReleaseInfo, releases: list[Release]
) -> list[CheckedStatement]:
    """What the guarantee comes to here; nothing of a release that was built without one."""
    if "paired" not in golden:
        return []
    record, images = PairedRecord.model_validate(golden["paired"]), golden_batch(folder, releases[0].chain)
    cells, tolerance = _cells_of(info, len(images)), golden["tolerance"]["probability"]
    return [one for release in releases for one in check_paired(record, release, images, cells, tolerance)]


def verify_release(folder: Path, threads: int = 0) -> Replay:
    """Check all of a release: every file unchanged, the chain the same, every golden case answered as at its build, and
    every statement of its guarantee true here. Raises ReleaseError naming what is wrong.
    """
    check_sums(folder)
    info = read_info(folder)
    return replay(folder, info, open_every_model(folder, threads))


def open_every_model(folder: Path, threads: int = 0) -> list[Release]:
    """Every model of a release in every engine that it may run in."""
    info = read_info(folder)
    kinds: tuple[Kind, ...] = ("int8", "float")
    return [Release.open(folder, kind, engine, threads) for kind in kinds for engine in info.models[kind].engines]

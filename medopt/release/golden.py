"""Golden cases: drawn scans with the answers that the release gave when it was built.

They are drawn, never a patient's: a release leaves the hospital. Replaying them proves that files are read, prepared
and judged on this machine as they were where the release was built.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medopt.core.errors import ReleaseError, listed
from medopt.core.files import write_json
from medopt.core.records import FloatArray, Volume
from medopt.imaging import read_scan
from medopt.phantom import write_radiograph
from medopt.release.layout import GOLDEN, ReleaseInfo
from medopt.release.predictor import Predictor
from medopt.transforms.prepare import PrepareChain

COUNT = 3
# int8 arithmetic differs a little between processors (VNNI, AVX2) and engines; the prepared pixels may not.
PROBABILITY_TOLERANCE = 0.02
PIXEL_TOLERANCE = 1e-4


def draw_golden(folder: Path, spatial_dims: int, seed: int = 0) -> list[Path]:
    """Draw the scans: DICOM radiographs for a 2-D study, NIfTI volumes for a 3-D one."""
    import nibabel  # only building a release draws them

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(COUNT):
        field = _blobs((48, 56, 52) if spatial_dims == 3 else (320, 288), np.random.default_rng((seed, index)))
        if spatial_dims == 3:
            path = folder / f"case-{index + 1}.nii.gz"
            nibabel.save(nibabel.Nifti1Image((1000 * field).astype(np.int16), np.eye(4)), path)
        else:
            path = write_radiograph(folder / f"case-{index + 1}.dcm", field)
        paths.append(path)
    return paths


def _blobs(shape: tuple[int, ...], random: np.random.Generator) -> FloatArray:
    """Smooth bright blobs on a gradient with a little grain, 0 to 1."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    out = 0.3 + 0.2 * axes[-1] + 0.02 * random.standard_normal(shape)
    for _ in range(6):
        center, radius = random.uniform(-0.7, 0.7, len(shape)), random.uniform(0.05, 0.4)
        distance = sum((axis - at) ** 2 for axis, at in zip(axes, center, strict=True))
        out = out + random.uniform(0.1, 0.5) * np.exp(-distance / radius**2)
    return ((out - out.min()) / (out.max() - out.min())).astype(np.float32)


def record_answers(folder: Path, predictors: list[Predictor], scans: list[Path]) -> None:
    """Write `golden.json`: for every scan the prepared pixels' figures and each model's and engine's answer."""
    cases = []
    for path in scans:
        scan = _read(path)
        answers = {f"{p.kind}/{p.engine.name}": p.predict_scan(scan).probabilities for p in predictors}
        name = path.relative_to(folder).as_posix()
        cases.append({"scan": name, "pixels": _pixels(predictors[0], scan), "answers": answers})
    tolerance = {"probability": PROBABILITY_TOLERANCE, "pixels": PIXEL_TOLERANCE}
    write_json(folder / GOLDEN, {"tolerance": tolerance, "cases": cases})


def golden_scans(folder: Path) -> list[Volume]:
    """The golden scans of a release, read."""
    cases = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))["cases"]
    return [_read(folder / case["scan"]) for case in cases]


def golden_batch(folder: Path, chain: PrepareChain) -> FloatArray:
    """The golden scans, prepared: (N, C, *size)."""
    return np.stack([chain(scan).numpy() for scan in golden_scans(folder)])


def _read(path: Path) -> Volume:
    """A golden scan; NIfTI names no window, so that a study that takes the scan's own gets that of the drawing."""
    volume = read_scan(path)
    return volume if volume.window else replace(volume, window=(500, 1000))


def _pixels(predictor: Predictor, scan: Volume) -> list[float]:
    """Mean, standard deviation and 16 sampled values of the prepared image."""
    image = predictor.chain(scan).numpy()
    sampled = image.ravel()[np.linspace(0, image.size - 1, 16).astype(int)]
    return [float(image.mean()), float(image.std()), *(float(value) for value in sampled)]


def replay(folder: Path, info: ReleaseInfo, predictors: list[Predictor]) -> list[dict[str, Any]]:
    """Predict every golden case again, and compare.

    Returns a row a case and model with the largest probability difference. Raises ReleaseError where prepared pixels
    or probabilities are not those of the build.
    """
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    rows, faults = [], []
    for case in golden["cases"]:
        scan = _read(folder / case["scan"])
        pixels = float(np.abs(np.subtract(_pixels(predictors[0], scan), case["pixels"])).max())
        if not pixels <= golden["tolerance"]["pixels"]:
            faults.append(f"{case['scan']}: prepared pixels differ by {pixels:.2g}")
        for predictor in predictors:
            which = f"{predictor.kind}/{predictor.engine.name}"
            found, wanted = predictor.predict_scan(scan).probabilities, case["answers"][which]
            difference = max(abs(found[label] - wanted[label]) for label in info.labels)
            rows.append({"case": case["scan"], "model": which, "difference": difference, "probability": found})
            if not difference <= golden["tolerance"]["probability"]:
                faults.append(f"{case['scan']}: {which} answers differ by {difference:.3f}")
    if faults:
        raise ReleaseError(
            f"The release {folder} does not answer its golden cases as when it was built: {listed(faults)}. "
            "It may not serve on this machine; compare the package versions in release.json with those here."
        )
    return rows

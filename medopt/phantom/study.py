"""A synthetic study of fictional patients, drawn from a seed: patients, splits and files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medopt.core.errors import ConfigError
from medopt.core.files import write_json, write_text
from medopt.core.provenance import usable_cores
from medopt.core.records import FloatArray, Split
from medopt.core.reporter import Reporter, SilentReporter
from medopt.phantom.anatomy import project_chest
from medopt.phantom.chest import draw_chest, draw_pose
from medopt.phantom.detector import expose, site_named
from medopt.phantom.findings import add_distractors, add_nodule, draw_nodule
from medopt.phantom.projection import ProjectionGrid
from medopt.phantom.radiograph_dicom import Radiograph, phantom_uid, write_radiograph

COLUMNS = ("image", "patient_id", "study_uid", "series_uid", "site", "age", "sex", "label", "split")
LABELS = ("no_nodule", "nodule")
PREVALENCE = 0.45
TWO_IMAGES = 0.15
"""Share of the patients with a second image."""
GRID_MM = 0.9
"""Spacing at which the anatomy is drawn; the pixels of the detector are finer."""
MARGIN_MM = 14.0
"""Margin drawn beyond the edge of the detector, so that a tilted patient fills it."""
SHARES = {"site_a": (0.4, (0.68, 0.20)), "site_b": (0.4, (0.68, 0.20)), "site_c": (0.2, (0.0, 0.0))}
"""Share of the patients at each site, and the shares of these for train and val; the rest is for test."""
VERSION = 2
"""Incremented whenever the same seed would give other pixels."""
PARAMETERS = ("patients", "seed", "version")


@dataclass(frozen=True, slots=True)
class Patient:
    """One fictional patient: site, split, with or without a nodule, and the number of images."""

    number: int
    identifier: str
    site: str
    split: Split
    nodule: bool
    sex: str
    age: int
    images: int


@dataclass(frozen=True, slots=True)
class Shot:
    """One image of a patient, the `index`-th."""

    patient: Patient
    index: int

    @property
    def file(self) -> str:
        """The image's path below the study's folder."""
        return f"images/{self.patient.site}/{self.patient.identifier.lower()}_{self.index + 1}.dcm"


def draw_case(
    seed: int,
    site: str,
    *,
    nodule: bool,
    size: tuple[int, int] | None = None,
    patient: int = 0,
    image: int = 0,
    sex: str = "M",
) -> FloatArray:
    """Draw one radiograph: (rows, columns) in 0..1, dense tissue bright; `size` replaces the site's own matrix.

    The chest and the nodule depend on (seed, patient); the pose, the distractors and the noise also on `image`, its
    index. The field of view is that of the site, whatever the size. Raises ConfigError for an unknown site.

    >>> draw_case(7, "site_a", nodule=True, size=(64, 52)).shape
    (64, 52)
    """
    system = site_named(site)
    size = size or (system.rows, system.columns)
    patient_rng = np.random.default_rng([seed, patient])
    chest, lesion = draw_chest(patient_rng, sex), draw_nodule(patient_rng)
    rng = np.random.default_rng([seed, patient, image + 1])
    pose = draw_pose(rng)
    height, width = system.rows * system.spacing_mm, system.columns * system.spacing_mm
    spacing = max(GRID_MM, width / size[1])
    rows, cols, margin = round(height / spacing), round(width / spacing), math.ceil(MARGIN_MM / spacing)
    scene = project_chest(chest, pose, ProjectionGrid(rows + 2 * margin, cols + 2 * margin, spacing, pose.shift))
    absorbance = scene.absorbance
    add_distractors(absorbance, rng, chest, scene)
    if nodule:
        add_nodule(absorbance, lesion, chest, scene)
    turned = Image.fromarray(absorbance).rotate(math.degrees(pose.roll), Image.Resampling.BICUBIC)
    absorbance = np.asarray(turned)[margin:-margin, margin:-margin]
    return expose(absorbance, system, rng, size)


def plan_patients(patients: int, seed: int) -> list[Patient]:
    """Draw the patients: the same prevalence at each site and in each split, a patient in one split only."""
    rng = np.random.default_rng([seed, patients, 99])
    plan: list[Patient] = []
    for letter, (site, (share, parts)) in zip("ABC", SHARES.items(), strict=True):
        count = patients - len(plan) if letter == "C" else round(patients * share)
        train, val = (round(count * part) for part in parts)
        sizes: dict[Split, int] = {"train": train, "val": val, "test": count - train - val}
        splits = [split for split, size in sizes.items() for _ in range(size)]
        nodules = [nodule for size in sizes.values() for nodule in _alternating(size)]
        twice = rng.permutation(count) < round(count * TWO_IMAGES)
        for at, place in enumerate(rng.permutation(count)):
            plan.append(
                Patient(
                    number=len(plan),
                    identifier=f"PHANTOM-{letter}{at + 1:03d}",
                    site=site,
                    split=splits[place],
                    nodule=nodules[place],
                    sex="MF"[rng.integers(2)],
                    age=int(rng.integers(35, 86)),
                    images=1 + int(twice[at]),
                )
            )
    return plan


def draw_study(
    folder: str | Path,
    *,
    patients: int = 600,
    seed: int = 7,
    reporter: Reporter | None = None,
    workers: int | None = None,
) -> Path:
    """Draw a study of radiographs of fictional patients below `folder` and return the path of its manifest.

    Writes `images/<site>/<name>.dcm`, `phantom.json` (the parameters and the SHA-256 of the manifest) and, last of
    all, `manifest.csv`. Every file is written whole or not at all and depends on the seed alone, so an interrupted
    study is continued, and a complete one is returned at once. Raises ConfigError where the folder holds something
    else or the study would be too small, StorageError where it cannot be written.

    Images are DICOM (DX, one 16-bit frame of about a megapixel) of three sites with different detectors; the third site
    is in the test split only. `workers` processes draw, by default one a core; 1 draws in this process (the others
    need `if __name__ == "__main__":` in a script, as all of Python's spawned processes).

    >>> manifest = draw_study("phantom-data/phantom", patients=30)
    >>> manifest.as_posix()
    'phantom-data/phantom/manifest.csv'
    """
    folder = Path(folder)
    if patients < 24:
        raise ConfigError(
            f"A phantom study of {patients} patients cannot fill three sites and splits: ask for 24 or more."
        )
    shots = [Shot(patient, index) for patient in plan_patients(patients, seed) for index in range(patient.images)]
    manifest, text = folder / "manifest.csv", _manifest(shots, seed)
    facts = {
        "what": "Fictional patients drawn by medopt phantom; not for diagnosis",
        "version": VERSION,
        "patients": patients,
        "seed": seed,
        "images": len(shots),
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    _claim(folder, facts)
    missing = [shot for shot in shots if not (folder / shot.file).is_file()]
    if missing:
        manifest.unlink(missing_ok=True)
        advance = (reporter or SilentReporter()).progress(len(missing), "radiographs")
        for _ in _draw_all(folder, missing, seed, workers or usable_cores()):
            advance(1)
    if not manifest.is_file() or manifest.read_text(encoding="utf-8") != text:
        write_text(manifest, text)
    return manifest


def _alternating(count: int) -> list[bool]:
    """Nodule or none, in the prevalence of the study, spread evenly over `count`."""
    return [int((at + 1) * PREVALENCE + 0.5) > int(at * PREVALENCE + 0.5) for at in range(count)]


def _claim(folder: Path, facts: dict[str, object]) -> None:
    """Refuse a folder that holds another study or other data."""
    card = folder / "phantom.json"
    if card.is_file():
        try:
            existing = json.loads(card.read_text(encoding="utf-8"))
        except ValueError:
            existing = {}
        if existing != facts:
            old, new = (", ".join(f"{key} {study.get(key)}" for key in PARAMETERS) for study in (existing, facts))
            raise ConfigError(
                f"{folder} holds another phantom study ({old}) than the requested one ({new}). "
                "Choose another folder, or remove this one first."
            )
    elif any((folder / name).exists() for name in ("manifest.csv", "images")):
        raise ConfigError(f"{folder} holds data that medopt phantom did not draw. Choose another folder.")
    else:
        write_json(card, facts)


def _draw_all(folder: Path, shots: list[Shot], seed: int, workers: int) -> Iterator[Path]:
    """Draw the images, in this process or in several, and yield each path when it is done."""
    if workers == 1:
        for shot in shots:
            yield _draw(folder, shot, seed)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(_draw, folder, shot, seed) for shot in shots]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _draw(folder: Path, shot: Shot, seed: int) -> Path:
    """Draw and write one image."""
    patient = shot.patient
    site = site_named(patient.site)
    pixels = draw_case(
        seed, patient.site, nodule=patient.nodule, patient=patient.number, image=shot.index, sex=patient.sex
    )
    study, series = _uids(shot, seed)
    header = Radiograph(
        patient_id=patient.identifier,
        patient_name=f"PHANTOM^{patient.identifier[-4:]}",
        sex=patient.sex,
        age=patient.age,
        study_uid=study,
        series_uid=series,
        instance_uid=phantom_uid(str(seed), shot.file, "instance"),
        accession=f"PH{patient.number:05d}{shot.index}",
        date=f"2020{1 + patient.number % 12:02d}{1 + (patient.number // 12) % 27 + shot.index:02d}",
        institution=f"medopt phantom {patient.site}",
        model=site.model,
        kvp=site.kvp,
        spacing_mm=site.spacing_mm,
        photometric=site.photometric,
        transfer_syntax=site.transfer_syntax,
    )
    return write_radiograph(folder / shot.file, pixels, header)


def _uids(shot: Shot, seed: int) -> tuple[str, str]:
    """Study and series UID: each image is a study of its own."""
    return phantom_uid(str(seed), shot.file, "study"), phantom_uid(str(seed), shot.file, "series")


def _manifest(shots: list[Shot], seed: int) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    for shot in shots:
        patient = shot.patient
        table.writerow(
            (
                shot.file,
                patient.identifier,
                *_uids(shot, seed),
                patient.site,
                patient.age,
                patient.sex,
                LABELS[patient.nodule],
                patient.split,
            )
        )
    return stream.getvalue()

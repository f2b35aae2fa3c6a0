"""What medopt makes of faulty series, and what MONAI's reader makes of them: one table.

    python benchmarks/series_reading.py [--json]

The series are made as the tests make theirs: a CT of 12 slices, 2.5 mm apart, pixels of 0.75 x 0.5 mm, in each way that
goes wrong. "Right" is right in whatever order of axes, so that no convention is judged.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import LoadImage
from rich.console import Console
from rich.table import Table

from medopt.core.errors import DataError
from medopt.imaging import read_scan

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "imaging"))
from scans_made import canonical_affine, enhanced, letter_f, saved, series, slices

GRID, AFFINE = letter_f((12, 20, 16)), canonical_affine()
SPACING = (2.5, 0.75, 0.5)
TILT = np.radians(10)


@dataclass(frozen=True)
class Case:
    """A series and what is in it: voxels in the unit that its header gives them, and millimetres between them."""

    make: Callable[[], list[Any]]
    voxels: np.ndarray | None = None
    """None where no reading of it is right."""
    spacing: tuple[float, ...] = SPACING


def numbered(made: list[Any] | None = None) -> list[Any]:
    """Sound slices, or these, with their InstanceNumber in order."""
    made = made or slices(GRID, AFFINE)
    for number, dataset in enumerate(made, start=1):
        dataset.InstanceNumber = number
    return made


def moved(number: int, millimetres: float) -> list[Any]:
    """The slices with one of them moved along the normal."""
    made = numbered()
    place = [float(value) for value in made[number].ImagePositionPatient]
    made[number].ImagePositionPatient = [*place[:2], place[2] + millimetres]
    return made


def tilted() -> list[Any]:
    """Slices that slide sideways, as with a gantry tilted by 10 degrees."""
    affine = AFFINE.copy()
    affine[1, 0] = 2.5 * np.tan(TILT)
    return numbered(slices(GRID, affine))


def marked_scout() -> list[Any]:
    """The last slice is a localizer."""
    made = numbered()
    made[-1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return made


def inverted() -> list[Any]:
    """MONOCHROME1: the same picture, stored with low values bright."""
    made = slices(np.ascontiguousarray(4095 - GRID).astype(np.uint16), AFFINE, BitsStored=12)
    for dataset in made:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    return numbered(made)


PER_FRAME = np.arange(12)[:, None, None]  # each frame of the enhanced object has a rescale intercept of its own
CASES = {
    "sound": Case(numbered, GRID),
    "sound; InstanceNumber out of order": Case(lambda: slices(GRID, AFFINE), GRID),
    "a slice is missing": Case(lambda: [one for k, one in enumerate(numbered()) if k != 5]),
    "a scout 195 mm away among the slices": Case(lambda: moved(11, 195.0)),
    "a scout marked LOCALIZER": Case(marked_scout),
    "two slices in one place": Case(lambda: moved(5, -2.5)),
    "a slice 0.8 mm off its place": Case(lambda: moved(5, 0.8)),
    "gantry tilted by 10 degrees": Case(tilted, GRID, (float(2.5 / np.cos(TILT)), 0.75, 0.5)),
    "MONOCHROME1": Case(inverted, GRID),
    "enhanced multi-frame, rescale per frame": Case(lambda: [enhanced(GRID, AFFINE)], GRID + PER_FRAME),
}


def right(array: np.ndarray, spacing: tuple[float, ...], case: Case) -> str:
    """Whether voxels (in whatever order of axes) and spacing are those that were written."""
    told = f"{' x '.join(map(str, array.shape))}, {' x '.join(f'{value:.3g}' for value in spacing)} mm"
    if case.voxels is None:
        return f"taken as sound: {told}"
    same = any(
        np.array_equal(array, np.flip(case.voxels.transpose(axes), [axis for axis in range(3) if flips >> axis & 1]))
        for axes in permutations(range(3))
        for flips in range(8)
    )
    scaled = np.allclose(sorted(spacing), sorted(case.spacing), rtol=0.01)
    words = [text for good, text in ((same, "voxels"), (scaled, "spacing")) if not good]
    return f"right: {told}" if not words else f"WRONG {' and '.join(words)}: {told}"


def by_medopt(path: Path, case: Case) -> str:
    """The volume, or the reason in short."""
    try:
        volume = read_scan(path)
    except DataError as error:
        return "refused: " + str(error).partition(": ")[2].split(". ")[0].replace(str(path), "")[:110]
    tilt = volume.source.get("tilt_degrees")
    told = right(volume.array[0], volume.spacing_mm, case)
    return f"{told}, tilt of {tilt} degrees kept in the affine" if tilt else told


def by_monai(path: Path, case: Case) -> str:
    """What LoadImage with its PydicomReader gives."""
    try:
        image = LoadImage(image_only=True, reader="PydicomReader")(path)
    except Exception as error:  # its own exceptions share no base
        return f"fails: {type(error).__name__}"
    spacing = np.linalg.norm(image.affine.numpy()[:3, :3], axis=0)
    return right(np.squeeze(image.numpy()), tuple(spacing.tolist()), case)


def main() -> None:
    """Build each series, read it twice, show what came of it."""
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(CASES.items()):
            datasets, place = case.make(), Path(folder) / str(number)
            path = series(place, datasets) if len(datasets) > 1 else saved(datasets[0], place / "one.dcm")
            rows.append({"series": name, "medopt": by_medopt(path, case), "MONAI": by_monai(path, case)})
    table = Table(*rows[0], show_lines=True)
    for row in rows:
        table.add_row(*row.values())
    Console(width=150).print(table)
    if "--json" in sys.argv:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()

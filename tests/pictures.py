"""Pictures that look like nothing else, and manifests of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medopt.core.records import Case, Split


def picture(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """(size, size) of random patches of 1/8 of the side, with a little noise."""
    random = np.random.default_rng(seed)
    patches = np.kron(random.uniform(40, 200, (8, 8)), np.ones((size // 8, size // 8)))
    return np.clip(patches + random.normal(0, 4, (size, size)), 0, 255).astype(np.uint8)


def noisy(image: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """The same picture as another file would hold it: other values everywhere, hardly to be seen."""
    change = np.random.default_rng(seed).normal(0, 3, image.shape)
    return np.clip(image * 0.9 + 10 + change, 0, 255).astype(np.uint8)


def write_set(folder: Path, patients: int = 24) -> list[Case]:
    """One picture a patient, two labels, three splits (12, 6, 6), as PNG and as cases."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for index in range(patients):
        split: Split = "train" if index < patients // 2 else "val" if index < 3 * patients // 4 else "test"
        Image.fromarray(picture(index)).save(folder / f"{index:03d}.png")
        cases.append(Case(f"c{index}", f"p{index}", f"{index:03d}.png", (index % 2,), split))
    return cases


def write_manifest(path: Path, cases: list[Case], labels: tuple[str, ...] = ("benign", "malignant")) -> Path:
    """A CSV of the cases, with a column that nothing reads."""
    rows = [f"{c.image},MRN{c.patient_id},{labels[c.label[0]]},{c.split},kept as it is" for c in cases]
    path.write_text("\n".join(["image,patient_id,label,split,remark", *rows]) + "\n", encoding="utf-8")
    return path

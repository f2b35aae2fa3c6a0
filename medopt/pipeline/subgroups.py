"""Which subgroups a case belongs to: sex, age band, scanner, view, image size, and columns of the manifest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medopt.data.cache import load_facts
from medopt.imaging.facts import ScanFacts
from medopt.records import Case
from medopt.training.task import Prepared

AGE_BANDS = ((18, "below 18"), (40, "18 to 39"), (65, "40 to 64"), (200, "65 and older"))
"""First age that is no longer in the band, and the band's name."""
SIZES = ((128, "below 128"), (256, "128 to 255"), (512, "256 to 511"), (1024, "512 to 1023"), (2048, "1024 to 2047"))
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "o": "other", "other": "other"}


def subgroups(part: Prepared) -> dict[str, NDArray[np.str_]]:
    """The group (N,) of each case by variable, empty where it is unknown; only variables of two groups or more.

    What the manifest says goes before what the scan's header says. Raises StorageError where a cached image vanished.
    """
    told = [_groups(case, load_facts(file)) for case, file in zip(part.cases, part.files, strict=True)]
    names = dict.fromkeys(name for groups in told for name in groups)
    columns = {name: np.array([groups.get(name, "") for groups in told], dtype=np.str_) for name in names}
    return {name: column for name, column in columns.items() if len(set(column[column != ""])) > 1}


def _groups(case: Case, facts: ScanFacts) -> Mapping[str, str]:
    given = dict(case.groups)
    known = {
        "sex": SEXES.get((given.get("sex") or facts.sex).strip().lower(), ""),
        "age": _age_band(given.get("age") or facts.age),
        "scanner": facts.scanner,
        "view": facts.view,
        "image size": _size_band(facts.shape),
    }
    return {**{name: value for name, value in given.items() if name not in known}, **known}


def _age_band(text: str) -> str:
    try:
        years = float(text.strip().upper().removesuffix("Y"))
    except ValueError:
        return ""
    return next((name for end, name in AGE_BANDS if 0 <= years < end), "")


def _size_band(shape: tuple[int, ...]) -> str:
    """By the shorter side of an image (of a slice, in a volume), in pixels."""
    side = min(shape[-2:], default=0)
    return next((f"{name} px" for end, name in SIZES if side < end), "2048 px and more")

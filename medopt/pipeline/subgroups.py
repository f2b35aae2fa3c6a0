"""Which subgroups a case belongs to: sex, age band, scanner, view, image size, and columns of the manifest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Case
from medopt.data.cache import load_facts
from medopt.imaging.acquisition import ScanFacts, age_band, sex
from medopt.training.job import Prepared


def subgroups(part: Prepared) -> dict[str, NDArray[np.str_]]:
    """The group (N,) of each case by variable, empty where it is unknown; only variables of two groups or more.

    What the manifest says goes before what the scan's header says. Raises StorageError where a cached image vanished.
    """
    told = [_groups(case, load_facts(file)) for case, file in zip(part.cases, part.files, strict=True)]
    names = dict.fromkeys(name for groups in told for name in groups)
    columns = {name: np.array([groups.get(name, "") for groups in told], dtype=np.str_) for name in names}
    return {name: column for name, column in columns.items() if len(set(column[column != ""])) > 1}


def _groups(case: Case, facts: ScanFacts) -> dict[str, str]:
    given = dict(case.groups)
    common = {"sex": sex(given.pop("sex", "")), "age": age_band(given.pop("age", ""))}
    return given | facts.groups() | {name: group for name, group in common.items() if group}

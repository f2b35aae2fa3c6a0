"""The manifest that a run keeps, with pseudonyms only, and the digests by which a run knows its cases."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.files import atomic
from medopt.core.privacy import pseudonym
from medopt.core.records import Case, Label
from medopt.manifest.table import UNCERTAIN, group_columns, image_columns, label_columns


def write_run_manifest(path: Path, cases: Iterable[Case], study: Study) -> None:
    """Write the manifest of a run, whole or not at all: pseudonyms for patients and UIDs, labels by name.

    Raises StorageError where the disk is full or the folder may not be written to.
    """
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        labels = label_columns(study)
        grouping = group_columns(study)
        known = ["case_id", *image_columns(study), "patient_id", "site", *labels, "split", "study_uid", "series_uid"]
        covariates = [one.column for one in study.data.covariates]
        more = [
            (at, name) for at, name in enumerate(covariates) if name not in grouping
        ]  # cells of groups are the same
        writer.writerow([*known, *grouping, *(name for _, name in more)])
        for case in cases:
            named = _cells(case, study)
            uids = [_uid_pseudonym(uid) for uid in (case.study_uid, case.series_uid)]
            groups = [dict(case.groups).get(name, "") for name in grouping]
            images = case.channels or [case.image]
            rest = [case.covariates[at] for at, _ in more]
            writer.writerow(
                [case.case_id, *images, case.patient_id, case.site, *named, case.split, *uids, *groups, *rest]
            )


def _cells(case: Case, study: Study) -> list[Label | float | str]:
    """The labels as the manifest had them: what was uncertain stays so, and what is missing is empty."""
    if study.data.task == "regression":
        return [case.number]
    if study.data.task != "multilabel":
        return [study.data.labels[case.class_index]]
    return [UNCERTAIN if at in case.uncertain else label for at, label in enumerate(case.label)]


def manifest_digest(cases: Iterable[Case]) -> str:
    """SHA-256 of the content of the cases, whatever their order."""
    return _digest(cases, str, attrgetter("groups"))


def _digest(cases: Iterable[Case], hide: Callable[[str], str], groups: Callable[[Case], tuple[Any, ...]]) -> str:
    """SHA-256 of sorted rows, a row a case; only rows of one case_id are in memory together."""
    content, case_id = attrgetter("case_id", "patient_id", "image", "label", "split", "site"), attrgetter("case_id")
    digest = hashlib.sha256()
    for _, same in groupby(sorted(cases, key=case_id), case_id):
        rows = (
            (*content(case), hide(case.study_uid), hide(case.series_uid), *groups(case), *case.channels, *_number(case),
             *case.covariates)
            for case in same
        )  # fmt: skip
        for row in sorted(rows):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _number(case: Case) -> tuple[str, ...]:
    return () if case.number is None else (repr(case.number),)


def training_digest(cases: Iterable[Case], *, from_run: bool = False) -> str:
    """SHA-256 of what training reads of the cases: all but their subgroups, with UIDs as pseudonyms.

    `from_run` as in `read_manifest`: the UIDs are pseudonyms already.
    """
    return _digest(cases, str if from_run else _uid_pseudonym, lambda case: ())


def _uid_pseudonym(uid: str) -> str:
    return pseudonym(uid) if uid else ""

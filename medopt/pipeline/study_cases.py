"""A study's cases, read and checked, and what a run of them would do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medopt.config import Study, Training
from medopt.config.study_file import find_manifest, load_study
from medopt.core.errors import ConfigError
from medopt.core.records import Case
from medopt.manifest.card import load_card
from medopt.manifest.check import check_cases
from medopt.manifest.covariates import with_covariates
from medopt.manifest.findings import finding_text, refuse_findings
from medopt.manifest.numbers import with_number_scale
from medopt.manifest.run_manifest import manifest_digest, training_digest
from medopt.manifest.splits import apply_folds
from medopt.manifest.table import read_manifest
from medopt.pipeline.start import RUNS, resolve_start
from medopt.training.job import BEST


@dataclass(frozen=True, slots=True)
class StudyCases:
    """A study's checked cases, and where they came from."""

    study: Study
    cases: tuple[Case, ...]
    root: Path
    digest: str
    notes: tuple[str, ...]

    @property
    def training_digest(self) -> str:
        """SHA-256 of what training reads of the cases: all but their subgroups."""
        return training_digest(self.cases)


def read_source(study: Study, study_file: Path, data: Path, runs: Path = RUNS) -> StudyCases:
    """Read and check a study's manifest; raises ConfigError or DataError with every reason.

    `runs` is the folder whose registry is asked where the study begins with a registered version.
    """
    study = resolve_start(study, study_file.parent, runs)
    manifest = find_manifest(study, study_file, data)
    card = load_card(manifest)
    cases = read_manifest(manifest, study)
    study = with_number_scale(study, cases)
    root = data / study.data.root
    findings = check_cases(cases, root, study, card)
    refuse_findings(findings, study)
    notes = [finding_text(finding, study) for finding in findings]
    cases = apply_folds(cases, study)
    study = with_covariates(study, cases)
    return StudyCases(study, cases, root, manifest_digest(cases), (*notes, *(card.notes if card else ())))


def read_run(folder: Path, data: Path) -> StudyCases:
    """The study and the cases of a finished run, from its folder; raises ConfigError where there is none.

    The cases were checked when the run began.
    """
    if not (folder / "checkpoints" / BEST).is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run that has been trained: there is no checkpoints/{BEST} in it. `medopt "
            "run` prints its folder at the end."
        )
    study = load_study(folder / "study.yaml")
    record = folder / "stages" / "tune.json"
    if study.training.has_auto and record.is_file():  # what the run found, it keeps
        found = Training.model_validate(json.loads(record.read_text(encoding="utf-8"))["facts"]["training"])
        study = study.model_copy(update={"training": found})
    cases = read_manifest(folder / "manifest.csv", study, from_run=True)
    return StudyCases(study, cases, data / study.data.root, manifest_digest(cases), ())

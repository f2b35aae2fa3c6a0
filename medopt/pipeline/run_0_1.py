"""Run folders of version 0.1.0, keyed by the whole study: found by what their training reads, and gone on with.

Their checkpoints and the records of their trainings carry the whole study's digest. A folder that is gone on with
keeps that digest, so that nothing is trained again.
"""

from __future__ import annotations

from pathlib import Path

from medopt.config.study_file import load_study
from medopt.core.errors import MedoptError
from medopt.core.provenance import digest
from medopt.core.records import StageRecord
from medopt.manifest.run_manifest import training_digest
from medopt.manifest.table import read_manifest
from medopt.pipeline.stage_settings import training_key

VERSION = "0.1.0"


def training_key_of(folder: Path) -> str:
    """The key of the training in a run folder, from its study file and manifest; "" where these cannot be read."""
    try:
        study = load_study(folder / "study.yaml")
        cases = read_manifest(folder / "manifest.csv", study, from_run=True)
    except MedoptError:
        return ""
    return training_key(study, training_digest(cases, from_run=True))


def study_of_checkpoints(folder: Path) -> str:
    """The study's digest that the checkpoints of a run folder carry; "" where there is none that can be read."""
    from medopt.training.checkpoint import read_tensors  # imports torch

    for path in sorted((folder / "checkpoints").glob("*.safetensors"), reverse=True):
        try:
            return str(read_tensors(path)[1].get("study", ""))
        except MedoptError:
            continue
    return ""


def is_training_record(record: StageRecord, identity: dict[str, str]) -> bool:
    """Whether version 0.1.0 wrote this record of a training, or of what it had found before it, with this identity."""
    return record.inputs == digest({"medopt": VERSION, "inputs": identity})

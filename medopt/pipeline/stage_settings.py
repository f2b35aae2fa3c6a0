"""Which settings of a study each stage of a run reads, in the order of the stages.

A stage whose settings have changed runs again; so do the stages that take its result, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medopt.config import Study
from medopt.config.training import without_how
from medopt.core.provenance import digest

COVARIATES = "data.covariates"
PRUNED = "pruned"  # pruned-1, pruned-2, ...: a stage a step
_TASK = ("seed", "data.task", "data.labels", "data.number", "data.covariates")
_NETWORK = (*_TASK, "model", "prepare")
_TRAINING = (*_NETWORK, "augment", "training")
_BASELINE = ("accelerator", "precision", "teacher", "teacher_digest")
_ENGINES = ("compression.threads", "compression.profile")
_INTERVALS = ("evaluation.bootstrap", "evaluation.confidence")
_ALL = tuple(Study.model_fields)

READS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "data"),
    "tune": _TRAINING,
    "baseline": (
        *_NETWORK,
        "augment.flip",
        "data.shortcuts",
        "data.subgroups",
        *(f"training.{key}" for key in _BASELINE),
    ),
    "train": _TRAINING,
    PRUNED: (*_TRAINING, "compression.pruning"),
    "compress": (*_NETWORK, *(f"compression.{key}" for key in ("profile", "opset", "calibration_images"))),
    "judge": (
        *(*_NETWORK, *_ENGINES, *_INTERVALS),
        *(f"compression.{key}" for key in ("gate", "engines", "calibration_images")),
        *(f"evaluation.{key}" for key in ("calibration", "operating_point", "target", "cost", "prevalence", "abstain")),
        *(f"training.{key}" for key in ("class_weights", "sampling", "teacher", "teacher_share")),
    ),
    "evaluate": (
        *("name", *_TASK, *_ENGINES, *_INTERVALS, "training.metric"),
        *(f"evaluation.{key}" for key in ("prevalence", "aggregate", "smallest_group")),
        *(f"evaluation.{key}" for key in ("calibration", "operating_point", "target", "cost", "abstain")),  # patients
        *(f"compression.gate.{key}" for key in ("strict", "auc_margin", "auc_bound")),  # the guarantee
        *(f"compression.gate.{key}" for key in ("max_decision_flips", "flips_bound")),
    ),
    "robustness": (
        *_TASK,
        *_ENGINES,
        "evaluation.confidence",
        "evaluation.shift_cases",
        "evaluation.shift_families",
        "prepare.channels",
        "prepare.missing_channel",
    ),
    "explain": (*_NETWORK, *_ENGINES, "evaluation.explain", "evaluation.nearest"),
    "domain": (
        *("seed", *_ENGINES, "domain", "evaluation.confidence", "evaluation.shift_families"),
        *("augment.flip", "augment.rotate_degrees", "prepare.channels", "prepare.missing_channel"),
    ),
    "release": (
        *("name", "question", "intended_use", "prepare", "compression.profile", "domain.enabled"),
        *("data.task", "data.labels", "data.number", "data.covariates", "data.series"),
    ),
    "report": _ALL,
    "record": _ALL,
}
"""Dotted paths: a whole section, or a key of one."""

ANALYSES = ("evaluate", "robustness", "explain", "domain")  # none of them takes what another one came to


def settings_of(study: Study, paths: Iterable[str]) -> dict[str, Any]:
    """The values of a study's settings, by dotted path.

    >>> study = Study.model_validate({"name": "lesions", "question": "Is there a lesion?", "seed": 3,
    ...     "data": {"manifest": "m.csv", "labels": ["no", "yes"]}, "prepare": {"size": [64, 64]}})
    >>> settings_of(study, ["seed", "prepare.size"])
    {'seed': 3, 'prepare.size': [64, 64]}
    """
    values, chosen = study.model_dump(mode="json", exclude={"data": {"manifest"}}), {}
    for path in paths:
        value = values
        for name in path.split("."):
            value = value[name]
        if value or path != COVARIATES:  # runs from before there were any are found again
            chosen[path] = value
    return chosen


def settings_digest(study: Study, stage: str) -> str:
    """SHA-256 of all settings that a stage reads."""
    settings = settings_of(study, READS[PRUNED if stage.startswith(f"{PRUNED}-") else stage])
    if "training" in settings:
        settings["training"] = without_how(settings["training"])
    return digest(settings)


def stage_names(study: Study) -> tuple[str, ...]:
    """The recorded stages of a study's run in their order: those that it does not switch off, and each pruning step."""
    off = {
        "prepare": True,  # keeps no record: prepared images are cached for all runs
        "tune": not study.training.has_auto,
        "robustness": study.evaluation.shift_cases == 0,
        "explain": study.evaluation.explain == 0,
        "domain": not study.domain.enabled,
    }
    pruning = study.compression.pruning
    steps = [f"{PRUNED}-{step}" for step in range(1, pruning.steps + 1)] if pruning.target else []
    names = [name for name in READS if not off.get(name)]
    place = names.index(PRUNED)
    return (*names[:place], *steps, *names[place + 1 :])


def trains_from_baseline(study: Study) -> bool:
    """Whether training begins with a network of the stage `baseline` or learns from one; else the figures alone do."""
    return study.model.has_start or bool(study.training.teachers)


def training_key(study: Study, cases_digest: str) -> str:
    """SHA-256 of all that training reads: the study's settings for it, and the cases."""
    return digest({"study": study.training_digest(), "cases": cases_digest})

"""The stage `domain`: the gate that declines scans unlike those of training, fitted and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.files import write_text
from medopt.core.records import KINDS, Estimate, FloatArray, Kind
from medopt.core.reporter import Reporter
from medopt.core.result import by_kind
from medopt.data.cache import load_facts
from medopt.evaluation.analysis_results import DeclinedShares, DomainResult, FittedImages, HeaderRanges
from medopt.inference.engines import Engine, file_batches, load_batch, open_engine
from medopt.metrics.proportions import proportion
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.prepare import PreparedSplits, PrepareStage
from medopt.pipeline.stages.robustness import choose_cases, worse_batch
from medopt.release.ood_check import Floats, OutOfDomainCheck, fit_distance, fit_rules, texture
from medopt.training.job import PreparedSplit
from medopt.transforms.resize import resize
from medopt.transforms.restore import restore_masks

RESULT = "domain.json"  # in the run folder what was measured, below models/ the gate itself
SERVED: Kind = "int8"
MOST_TRAIN, MOST_ALTERED, LEVELS = 2000, 60, (3, 5)
Change = Callable[[FloatArray, list[str]], FloatArray]


class OutOfDomainStage(Stage[NoResult]):
    """Fit the check that declines scans unlike those of training, set its limits on validation, and measure it."""

    name = "domain"
    inputs = ("prepare", "judge")

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """What was measured, and the check itself."""
        return [folder.path / RESULT, folder.models / RESULT]

    def run(self, context: RunContext) -> NoResult:
        """Fit, set limits, measure."""
        splits, gate_result = context.result(PrepareStage), context.result(JudgeStage)
        fit_check(context.study, splits, context.folder, gate_result, context.reporter)
        return NoResult()


def fit_check(
    study: Study,
    splits: PreparedSplits,
    folder: RunFolder,
    judged: GateResult,
    reporter: Reporter,
) -> None:
    """Fit the check on training images, set its limits on validation, and measure it on the test split.

    Writes models/domain.json, which a release takes along, and domain.json.
    """
    engines = {
        k: [open_engine(name, folder.models / f"{k}.onnx", study.compression.cores) for name in judged.engines[k]]
        for k in KINDS
    }
    served = {kind: opened[0] for kind, opened in engines.items()}
    train, val, test = splits["train"], splits["val"], splits["test"]
    picked = np.sort(np.random.default_rng(study.seed).permutation(len(train.files))[:MOST_TRAIN])
    learned = {kind: _features(served[kind], [train.files[row] for row in picked]) for kind in KINDS}
    held = {kind: [_features(engine, val.files) for engine in engines[kind]] for kind in KINDS}
    images = len(study.prepare.channel_names)
    textures = [_textures(files, images) for files in ([train.files[row] for row in picked], val.files)]
    # Each of the two distances may decline half of the share: together they decline at most all of it.
    share = study.domain.false_alarm / 2
    domain = OutOfDomainCheck(
        false_alarm=study.domain.false_alarm,
        rules=fit_rules([load_facts(file) for file in train.files], study.domain.margin),
        content={kind: fit_distance(learned[kind], held[kind], share) for kind in KINDS},
        # No network has learned the training images' texture by heart, so they tell the limit as well as validation
        # does, and several times as many know the tail of it better.
        texture=fit_distance(textures[0], [np.concatenate(textures)], share),
        images=images,
    )
    write_text(folder.models / RESULT, domain.model_dump_json() + "\n")
    result = DomainResult(
        false_alarm=study.domain.false_alarm,
        images=FittedImages(train=len(picked), validation=len(val.files)),
        header_rules=HeaderRanges.model_validate(domain.rules.model_dump()),
        declined=by_kind(lambda kind: _false_alarms(study, domain, kind, served[kind], val, test)),
        altered=_altered(study, domain, served[SERVED], test, reporter),
    )
    result.write(folder.path / RESULT)


def _features(engine: Engine, files: Sequence[Path]) -> Floats:
    """Features (N, F) of prepared images."""
    return np.concatenate([engine.run_both(load_batch(files[rows]))[1] for rows in file_batches(files)])


def _textures(files: Sequence[Path], images: int) -> Floats:
    """Textures (N, 4) of prepared images."""
    return np.concatenate([texture(load_batch(files[rows]), images) for rows in file_batches(files)])


def _declined(
    domain: OutOfDomainCheck, kind: Kind, engine: Engine, part: PreparedSplit, change: Change | None = None
) -> NDArray[np.bool_]:
    """Which prepared images of a set (N,), changed or as they are, the gate declines."""
    found: list[bool] = []
    for rows in file_batches(part.files):
        batch = load_batch(part.files[rows])
        if change is not None:
            batch = np.ascontiguousarray(change(batch, [case.case_id for case in part.cases[rows]]), np.float32)
        distances = domain.distances(kind, engine.run_both(batch)[1], batch)
        reasons = domain.reasons(batch, distances, [None] * len(batch))
        found += [bool(reason) for reason in reasons]
    return np.array(found)


def _share(study: Study, declined: NDArray[np.bool_], patients: NDArray[np.str_]) -> Estimate:
    """The declined share with its interval over patients."""
    index = np.unique(patients, return_inverse=True)[1]
    return proportion(declined, index, study.evaluation.confidence, len(declined))


def _column(part: PreparedSplit, name: str) -> NDArray[np.str_]:
    return np.array([getattr(case, name) for case in part.cases])


def _false_alarms(
    study: Study, domain: OutOfDomainCheck, kind: Kind, engine: Engine, val: PreparedSplit, test: PreparedSplit
) -> DeclinedShares:
    """The declined share of validation, on which the limits were set, of the test split and of each of its sites."""
    declined, patients, sites = (
        _declined(domain, kind, engine, test),
        _column(test, "patient_id"),
        _column(test, "site"),
    )
    return DeclinedShares(
        validation=_share(study, _declined(domain, kind, engine, val), _column(val, "patient_id")),
        test=_share(study, declined, patients),
        sites={str(one): _share(study, declined[sites == one], patients[sites == one]) for one in np.unique(sites)},
    )


def _altered(
    study: Study, domain: OutOfDomainCheck, engine: Engine, test: PreparedSplit, reporter: Reporter
) -> dict[str, Estimate]:
    """The declined share of test images that were made into something else, by what was done to them."""
    rows = choose_cases(test, MOST_ALTERED, study.seed)
    part = PreparedSplit([test.cases[row] for row in rows], [test.files[row] for row in rows])
    changes = alterations(study)
    advance = reporter.progress(len(changes), "altering images")
    found = {}
    for name, change in changes.items():
        found[name] = _share(study, _declined(domain, SERVED, engine, part, change), _column(part, "patient_id"))
        advance(1)
    return found


def alterations(study: Study) -> dict[str, Change]:
    """What a prepared batch (N, C, *size) is made into; what the study's own augmentation does is left out.

    The masks of a case of several images stay as they are, and missing images stay missing.
    """
    random = np.random.default_rng(study.seed)
    found: dict[str, Change] = {
        "random noise": lambda batch, _: random.random(batch.shape, np.float32),
        "blank": lambda batch, _: np.zeros_like(batch),
        "inverted": lambda batch, _: 1 - batch,
    }
    if "up_down" not in study.augment.flip:
        found["upside down"] = lambda batch, _: batch[..., ::-1, :]
    if study.augment.rotate_degrees < 90:
        found["turned by 90 degrees"] = lambda batch, _: _turned(batch)
    found = {name: _with_masks(study, change) for name, change in found.items()}
    for family in study.evaluation.shift_families:
        for level in LEVELS:
            found[f"{family}, level {level}"] = _worsening(study, family, level)
    return found


def _with_masks(study: Study, change: Change) -> Change:
    def changed(batch: FloatArray, names: list[str]) -> FloatArray:
        after = np.ascontiguousarray(change(batch, names))
        pairs = zip(map(torch.from_numpy, batch), map(torch.from_numpy, after), strict=True)
        return np.stack([restore_masks(study.prepare, one, other).numpy() for one, other in pairs])

    return changed


def _worsening(study: Study, family: str, level: int) -> Change:
    return lambda batch, names: worse_batch(study.prepare, batch, names, family, level)


def _turned(batch: FloatArray) -> FloatArray:
    """A quarter turn in the plane, brought back to the size."""
    turned = np.ascontiguousarray(np.rot90(batch, axes=(-2, -1)))
    return np.stack([resize(torch.from_numpy(one), batch.shape[2:]).numpy() for one in turned])

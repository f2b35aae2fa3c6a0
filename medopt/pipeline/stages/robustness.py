"""The stage `robustness`: the test split's images made worse, family by family and level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from medopt.config import Prepare, Study
from medopt.core.files import file_digest
from medopt.core.provenance import usable_cores
from medopt.core.records import KINDS, FloatArray, Kind, Predictions
from medopt.core.reporter import Reporter
from medopt.evaluation.analysis_results import RobustnessResult
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.evaluation.robustness import from_tables, shift_name
from medopt.figures.robustness import robustness_figure
from medopt.inference.engines import Engine, file_batches, load_batch, open_engine
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.pipeline.covariate_terms import covariate_logits, read_terms
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.pipeline.stages.evaluate import PREDICTIONS, test_split_predictions
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.training.job import PreparedSplit
from medopt.transforms.corrupt import corrupt, corrupt_all
from medopt.transforms.restore import restore_masks

TABLE, RESULT, PICTURE = "shift_predictions.csv", "robustness.json", "robustness.png"
MOST_WORKERS = 8
AT_ONCE = 8  # images, each of them held some 40 times


class RobustnessStage(Stage[NoResult]):
    """Measure how much of each model's AUC is left under each corruption."""

    name = "robustness"
    revision = 3  # hashed noise
    inputs = ("prepare", "judge")

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The predictions of the images as they are."""
        return {"predictions": file_digest(context.folder.path / PREDICTIONS)}

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """Results, table and picture."""
        return [folder.path / RESULT, folder.path / TABLE, folder.figures / PICTURE]

    def run(self, context: RunContext) -> NoResult:
        """Predict the corrupted images with both models."""
        test, tables = context.result(PrepareStage)["test"], test_split_predictions(context)
        gate_result = context.result(JudgeStage)
        check_robustness(context.study, test, tables, context.folder, gate_result, context.reporter)
        return NoResult()


def choose_cases(test: PreparedSplit, most: int, seed: int) -> list[int]:
    """Which test cases are made worse: patients at random until `most` cases are reached, all of a patient's cases."""
    patients = np.array([case.patient_id for case in test.cases])
    chosen: list[int] = []
    for patient in np.random.default_rng(seed).permutation(np.unique(patients)):
        rows = np.flatnonzero(patients == patient).tolist()
        if chosen and len(chosen) + len(rows) > most:
            break
        chosen += rows
    return sorted(chosen)


def check_robustness(
    study: Study,
    test: PreparedSplit,
    clean: Mapping[str, Predictions],
    folder: RunFolder,
    judged: GateResult,
    reporter: Reporter,
) -> None:
    """Predict corrupted images with both models, and write the table, `robustness.json` and the picture.

    `clean` are each model's predictions of the whole test split, in the order of `test`.
    """
    rows, settings = choose_cases(test, study.evaluation.shift_cases, study.seed), study.evaluation
    part = PreparedSplit([test.cases[row] for row in rows], [test.files[row] for row in rows])
    originals: dict[Kind, Predictions] = {
        kind: replace(clean[kind].where(np.array(rows)), model=shift_name(kind)) for kind in KINDS
    }
    tables = [*originals.values()]
    terms = read_terms(study, folder.models)
    added = {kind: covariate_logits(study, terms[kind] if terms else None, part.cases) for kind in KINDS}
    for (kind, family, level), logits in _worse(study, part, folder, judged, reporter).items():
        tables.append(replace(originals[kind], model=shift_name(kind, family, level), logits=logits + added[kind]))
    path, calibrations = folder.path / TABLE, {one.model: judged.calibrations[_kind(one)] for one in tables}
    write_predictions(path, tables, study.data.labels, study.data.task, calibrations)
    found = from_tables(
        read_predictions(path),  # every figure can be recomputed from that file
        lambda kind, table: CalibratedPredictions(table, study.data.task, judged.calibrations[kind]),
        confidence=settings.confidence,
    )
    robustness_figure(found, folder.path / "figures" / PICTURE, confidence=settings.confidence)
    RobustnessResult(cases=len(rows), float=found["float"], int8=found["int8"]).write(folder.path / RESULT)


def _kind(table: Predictions) -> str:
    return table.model.partition("|")[0]


Logits = dict[tuple[Kind, str, int], NDArray[np.float64]]


def _worse(study: Study, part: PreparedSplit, folder: RunFolder, judged: GateResult, reporter: Reporter) -> Logits:
    """Logits (N, K) by model, family and level. A few images are in memory at a time, and read once.

    Each worker has engines of its own with one thread: small networks lose by sharing one image among threads (1.2
    against 0.6 ms on a busy machine), and the images are made worse side by side as well.
    """
    workers = min(MOST_WORKERS, study.compression.cores or usable_cores())
    free: SimpleQueue[dict[Kind, Engine]] = SimpleQueue()
    for _ in range(workers):
        free.put({kind: open_engine(judged.engines[kind][0], folder.models / f"{kind}.onnx", 1) for kind in KINDS})

    def work(rows: slice) -> Logits:
        engines = free.get()
        try:
            return _worse_rows(study, PreparedSplit(part.cases[rows], part.files[rows]), engines)
        finally:
            free.put(engines)

    cut = list(file_batches(part.files, AT_ONCE))
    advance, found = reporter.progress(len(cut), "making images worse"), []
    with ThreadPoolExecutor(workers) as pool:
        for logits in pool.map(work, cut):
            found.append(logits)
            advance(1)
    return {key: np.concatenate([one[key] for one in found]) for key in found[0]}


def _worse_rows(study: Study, part: PreparedSplit, engines: Mapping[Kind, Engine]) -> Logits:
    names = [case.case_id for case in part.cases]
    images = [torch.from_numpy(one) for one in load_batch(part.files)]
    families = study.evaluation.shift_families
    worse = [corrupt_all(image, families, name) for image, name in zip(images, names, strict=True)]
    found = {}
    for family, level in worse[0]:
        pairs = zip(images, (one[family, level] for one in worse), strict=True)
        batch = np.stack([restore_masks(study.prepare, image, bad).numpy() for image, bad in pairs])
        for kind, engine in engines.items():
            found[kind, family, level] = engine.run(batch)
    return found


def worse_batch(prepare: Prepare, batch: FloatArray, names: list[str], family: str, level: int) -> FloatArray:
    """Prepared images (N, C, *size), each corrupted as its case name says."""
    pairs = zip(map(torch.from_numpy, batch), names, strict=True)
    return np.stack([restore_masks(prepare, one, corrupt(one, family, level, name)).numpy() for one, name in pairs])

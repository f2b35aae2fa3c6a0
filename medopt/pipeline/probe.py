"""Linear models of a study on validation, without a run: what a training has to beat, for one start or several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from medopt.config import Study
from medopt.core.records import Estimate, Split
from medopt.core.reporter import Reporter
from medopt.core.result import Result
from medopt.data.cache import PreparedCache
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.pipeline.linear_baselines import LinearBaseline, Splits, start_baseline, thumbnail_baseline
from medopt.pipeline.study_cases import read_source
from medopt.training.job import PreparedSplit
from medopt.transforms.prepare import PrepareChain

LOOKED_AT: tuple[Split, ...] = ("train", "val")


class ProbeResult(Result):
    """A linear model's AUC on validation, by which its penalty was chosen, and how long it took with its features."""

    reads: str
    features: int
    strength: float
    auc: Estimate
    seconds: float


def probe_study(
    studies: Sequence[Study], study_file: Path, data: Path, runs: Path, reporter: Reporter
) -> list[ProbeResult]:
    """Of a study, and the same with other starts: one model on thumbnails, and one on the features of each start."""
    found: list[ProbeResult] = []
    for given in studies:
        source = read_source(given, study_file, data, runs)
        study = source.study
        cases = [case for case in source.cases if case.split in LOOKED_AT]
        files = PreparedCache(runs / "cache", PrepareChain(study.prepare)).fill(cases, source.root, reporter)
        splits = {
            split: PreparedSplit(
                [case for case in cases if case.split == split],
                [file for case, file in zip(cases, files, strict=True) if case.split == split],
            )
            for split in LOOKED_AT
        }
        if not found:
            started = time.perf_counter()
            found.append(_result(study, splits, thumbnail_baseline(study, splits, LOOKED_AT), started))
        if study.model.has_start:
            started = time.perf_counter()
            baseline, _, record = start_baseline(study, splits, LOOKED_AT, reporter, runs)
            result = _result(study, splits, baseline, started)
            found.append(result.model_copy(update={"reads": f"features of {record.name}"}))
    return found


def _result(study: Study, splits: Splits, baseline: LinearBaseline, started: float) -> ProbeResult:
    scored = CalibratedPredictions(baseline.predictions(study, splits, ("val",)), study.data.task).judged
    areas = auc_with_covariance(scored.score, scored.truth, scored.patients)
    return ProbeResult(
        reads=baseline.reads,
        features=baseline.model.weight.shape[1],
        strength=baseline.model.strength,
        auc=mean_auc(areas, len(scored.predictions), study.evaluation.confidence),
        seconds=round(time.perf_counter() - started, 1),
    )

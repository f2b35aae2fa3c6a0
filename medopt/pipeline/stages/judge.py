"""The stage `judge`: calibrations, operating points, and whether the int8 model may take the float model's place.

Where int8 loses too much, the layers that harm most are left in float, as few as the gate passes. Which ones is told by
training images; how many, by the gate.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medopt.compression.gate import GateMeasurement, disagreement, judge, loses
from medopt.compression.mixed_precision import rank_by_harm, write_mixed_precision
from medopt.config import Study
from medopt.core.covariates import CovariateTerms
from medopt.core.records import Estimate, Kind, Predictions
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedImages
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.evaluate import resampling
from medopt.evaluation.validation_fit import fit_on, margin_of, parts_of, read_crossed
from medopt.inference.engines import Engine, load_batch, open_engine
from medopt.inference.latency import measure_latency
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance
from medopt.metrics.number_figures import error_change
from medopt.metrics.numbers import Margin
from medopt.metrics.weighted import auc
from medopt.pipeline.covariate_terms import read_terms
from medopt.pipeline.gate_result import GateResult
from medopt.pipeline.predict import predict
from medopt.pipeline.run_folder import FLOAT, INT8, NARROW, QUANTIZED, RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages.compress import calibration_files
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.training.job import PreparedSplit
from medopt.training.loop import load_best
from medopt.training.prior_shift import prior_shift

RANKED_ON = 16  # training images that tell which layers harm


class JudgeStage(Stage[GateResult]):
    """Write models/int8.onnx out of models/quantized.onnx, and let the gate decide on it."""

    name = "judge"
    revision = 2  # three outcomes
    inputs = ("prepare", "compress")
    result_type = GateResult

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The int8 model."""
        return [folder.models / INT8]

    def run(self, context: RunContext) -> GateResult:
        """Judge on validation."""
        splits = context.result(PrepareStage)
        calibrating = calibration_files(context.study, splits)
        networks, models = context.networks, context.folder.models
        shift = prior_shift(context.study, splits["train"].cases)
        return judge_models(context.study, splits["val"], networks, models, calibrating, context.reporter, shift)

    def finish(self, context: RunContext, result: GateResult, *, skipped: bool) -> None:
        """Let a model that did not pass be judged anew by the same command: times differ from call to call."""
        if not result.verdict.passed:
            context.folder.forget(self.name)


def judge_models(
    study: Study,
    validation: PreparedSplit,
    networks: Sequence[Path],
    models: Path,
    calibrating: Sequence[Path],
    reporter: Reporter,
    shift: tuple[float, ...] = (),
) -> GateResult:
    """Write models/int8.onnx out of models/quantized.onnx, and let the gate decide on it.

    `networks` are the weights of the network, of each member's where the models are an ensemble; `calibrating` are the
    prepared training images that int8 was calibrated on; `shift` is what training is known to have added to the logits.
    """
    jury = GateEvaluator(study, validation, networks, models, shift)
    shutil.copyfile(models / QUANTIZED, models / INT8)
    judged = jury.judge()
    if judged.verdict.passed or not study.compression.gate.mend or not jury.lost:
        return judged
    source = models / (NARROW if (models / NARROW).exists() else FLOAT)
    ranked = rank_by_harm(models / QUANTIZED, source, load_batch(calibrating[:RANKED_ON]))
    for count in _counts(len(ranked)):
        write_mixed_precision(models / QUANTIZED, source, ranked[:count], models / INT8, PreparedImages(calibrating))
        mended = jury.judge()
        if mended.verdict.passed:
            reporter.message(
                f"the gate did not pass int8 alone; it passes with {count} of {len(ranked)} layers in float"
            )
            return mended.model_copy(update={"in_float": tuple(ranked[:count])})
    shutil.copyfile(models / QUANTIZED, models / INT8)
    return judged


def _counts(layers: int) -> Iterator[int]:
    """1, 2, 4 ... up to a quarter of the layers."""
    count = 1
    while count <= layers // 4:
        yield count
        count *= 2


@dataclass
class GateEvaluator:
    """Judges models/int8.onnx against models/float.onnx on validation; what is known of the float model is kept."""

    study: Study
    validation: PreparedSplit
    networks: Sequence[Path]
    models: Path
    shift: tuple[float, ...] = ()
    lost: bool = False
    """Whether the last model lost accuracy in an engine, beyond the limits."""

    @property
    def names(self) -> list[str]:
        """The engines."""
        return [str(name) for name in self.study.compression.engines]

    def opened(self, file: str) -> dict[str, Engine]:
        """A model in every engine."""
        return {name: open_engine(name, self.models / file, self.study.compression.cores) for name in self.names}

    @cached_property
    def floats(self) -> dict[str, Engine]:
        """The float model in every engine."""
        return self.opened(FLOAT)

    @cached_property
    def eager(self) -> Callable[[NDArray[np.float32]], None]:
        """The networks themselves."""
        networks = [load_best(self.study, path) for path in self.networks]

        def run(image: NDArray[np.float32]) -> None:
            with torch.inference_mode():
                for network in networks:
                    network(torch.from_numpy(image))

        return run

    def judge(self) -> GateResult:
        """Calibrate, choose operating points, and decide."""
        study, names = self.study, self.names
        engines = self.opened(INT8)
        latency = self._latencies(engines)
        fastest = min(names, key=lambda name: latency[f"{name}_float"])
        before = self._table("float", self.floats[fastest])
        tables = {name: self._table("int8", engine) for name, engine in engines.items()}
        sizes = ((self.models / INT8).stat().st_size, (self.models / FLOAT).stat().st_size)
        candidates = [
            against_float(
                study, before, after, name, (latency[f"{name}_int8"], latency[f"{fastest}_float"]), sizes, self.shift
            )
            for name, after in tables.items()
        ]
        limits = study.compression.gate
        self.lost = any(loses(one, limits) for one in candidates)
        chosen = min(names, key=lambda name: latency[f"{name}_int8"])
        verdict = judge(candidates, limits, (self._auc(before), self._auc(tables[chosen])))
        passed = list(verdict.figures.engines_passed) or [verdict.figures.engine]
        fitted = {
            kind: fit_on(table, study.evaluation, study.data.task, shift=self.shift)
            for kind, table in (("float", before), ("int8", tables[passed[0]]))
        }
        return GateResult(
            calibrations={kind: one.calibration for kind, one in fitted.items()},
            points={kind: one.operating_point for kind, one in fitted.items()},
            engines={"float": sorted(names, key=lambda name: latency[f"{name}_float"]), "int8": passed},
            latency_ms=latency,
            verdict=verdict,
            shift=self.shift,
            margins=self._margins({kind: one.predictions for kind, one in fitted.items()}),
        )

    def _margins(self, tables: Mapping[str, Predictions]) -> dict[str, Margin]:
        scale = self.study.number_scale
        coverage = self.study.evaluation.confidence
        return {} if scale is None else {kind: margin_of(one, scale, coverage) for kind, one in tables.items()}

    def _latencies(self, engines: Mapping[str, Engine]) -> dict[str, float]:
        """Median milliseconds of one image: torch, and each engine with the float and the int8 model, interleaved."""
        image = load_batch(self.validation.files[:1])
        pairs = [(f"{name}_{kind}", one) for kind, all_ in (("float", self.floats), ("int8", engines))
                 for name, one in all_.items()]  # fmt: skip
        runs = {name: (lambda e=engine: e.run(image)) for name, engine in pairs}
        return measure_latency({"torch_float": lambda: self.eager(image), **runs})

    @cached_property
    def terms(self) -> CovariateTerms | None:
        """What covariates add to the logits of the models."""
        return read_terms(self.study, self.models)

    def _table(self, kind: Kind, engine: Engine) -> Predictions:
        term = self.terms[kind] if self.terms else None
        return predict(self.study, kind, "val", self.validation, engine, term)

    def _auc(self, table: Predictions) -> float | None:
        scored = CalibratedPredictions(table, self.study.data.task)
        value = float(auc(scored.score, scored.truth)[0])
        return value if np.isfinite(value) else None


def against_float(
    study: Study,
    before: Predictions,
    after: Predictions,
    engine: str,
    times: tuple[float, float],
    sizes: tuple[int, int],
    shift: Sequence[float] = (),
) -> GateMeasurement:
    """What the gate looks at: a model's validation predictions, time and file size, and those of the float model.

    Each case is read with a calibration and an operating point that the other cases gave.
    """
    task, wanted = study.data.task, study.evaluation
    parts, generator = parts_of(before, task, study.seed), np.random.default_rng(study.seed)
    old, new = (read_crossed(one, wanted, task, parts, shift) for one in (before, after))
    apart = disagreement(old, new, bootstrap=wanted.bootstrap, confidence=wanted.confidence, generator=generator)
    ranked = [CalibratedPredictions(one, task) for one in (before, after)]
    return GateMeasurement(
        engine,
        area_difference(ranked[0], ranked[1], wanted.confidence)[0],
        apart,
        latency_ms=times[0],
        float_ms=times[1],
        size_ratio=sizes[0] / sizes[1],
        fewest=auc_with_covariance(ranked[0].score, ranked[0].truth, ranked[0].patients).fewest,
        error_change=_error_change(study, before, after),
    )


def _error_change(study: Study, before: Predictions, after: Predictions) -> Estimate | None:
    """By how much the error of a number grows; None of a study that has none."""
    scale, how = study.number_scale, resampling(study.evaluation, study.seed)
    old, new = (CalibratedPredictions(one, study.data.task, scale=scale) for one in (before, after))
    if old.numbers is None or new.numbers is None:
        return None
    return error_change(old.numbers[0], new.numbers[0], old.numbers[1], old.patients, how)

"""One network in several widths and precisions: the files, and what each costs and keeps, measured on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medopt.compression.export import export_onnx
from medopt.compression.gate import criteria, faults_of
from medopt.compression.pareto import Candidate
from medopt.compression.quantize import quantize_int8
from medopt.compression.weights_only import store_float16, store_int4_weights, store_int8_weights
from medopt.config import Study
from medopt.data.cache import PreparedImages
from medopt.evaluation.compression_front import Precision
from medopt.inference.engines import file_batches, load_batch, open_engine
from medopt.inference.latency import measure_latency
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.pipeline.predict import predict
from medopt.pipeline.stages.judge import against_float
from medopt.training.covariates import term_of
from medopt.training.job import PreparedSplit
from medopt.training.loop import load_best

TORCH, SECONDS = "torch", 30.0


@dataclass(frozen=True, slots=True)
class Width:
    """The network at one width."""

    removed: float
    weights: Path
    multiply_adds: int


def file_of(removed: float, precision: str) -> str:
    """The name of an option's file."""
    return f"{removed:g}-{precision}.onnx"


def write_options(
    study: Study, width: Width, files: Sequence[Path], place: Path, precisions: Sequence[Precision]
) -> None:
    """Write one width in these precisions, and what they are made of."""

    def path(precision: str) -> Path:
        return place / file_of(width.removed, precision)

    export_onnx(
        load_best(study, width.weights),
        load_batch(files[next(file_batches(files, 8))]),
        path("float32"),
        study.compression.opset,
    )
    quantize_int8(path("float32"), path("int8"), PreparedImages(files), study.compression.profile)
    if "float16" in precisions:
        store_float16(path("float32"), path("float16"))
    if "int8-weights" in precisions:
        store_int8_weights(path("int8"), path("int8-weights"))
    if "int4-weights" in precisions:
        store_int4_weights(path("float32"), path("int4-weights"))


def measure_options(
    study: Study,
    validation: PreparedSplit,
    widths: Sequence[Width],
    precisions: Sequence[Precision],
    place: Path,
    shift: Sequence[float] = (),
) -> list[Candidate]:
    """Every option in its fastest engine, against the whole float model in its own; times interleaved in one go."""
    keys = [(one, precision) for one in widths for precision in ("float32", *precisions)]
    keys = list(dict.fromkeys((one, kind) for one, kind in keys if kind in precisions or not one.removed))
    names = [str(name) for name in study.compression.engines]
    engines = {
        _key(width, kind, name): open_engine(name, place / file_of(width.removed, kind), study.compression.cores)
        for width, kind in keys
        for name in names
    }
    image, network = load_batch(validation.files[:1]), load_best(study, widths[0].weights)

    def eager() -> None:
        with torch.inference_mode():
            network(torch.from_numpy(image))

    runs = {key: (lambda e=engine: e.run(image)) for key, engine in engines.items()}
    latency = measure_latency({TORCH: eager, **runs}, seconds=SECONDS)
    fastest = {key: min(names, key=lambda name: latency[_key(*key, name)]) for key in keys}
    base = _key(*keys[0], fastest[keys[0]])
    terms = {one: term_of(study, one.weights) for one, _ in keys}
    before = predict(study, "float", "val", validation, engines[base], terms[keys[0][0]])
    found = []
    for width, kind in keys:
        engine = _key(width, kind, fastest[width, kind])
        after = predict(study, "int8", "val", validation, engines[engine], terms[width])
        sizes = [(place / file_of(*one)).stat().st_size for one in ((width.removed, kind), (0, "float32"))]
        times = (latency[engine], latency[base])
        candidate = against_float(study, before, after, fastest[width, kind], times, (sizes[0], sizes[1]), shift)
        scored = CalibratedPredictions(after, study.data.task).judged
        auc = mean_auc(
            auc_with_covariance(scored.score, scored.truth, scored.patients),
            len(scored.predictions),
            study.evaluation.confidence,
        )
        name = f"{f'{width.removed:.0%} pruned' if width.removed else 'whole'}, {kind}"
        faults = faults_of(criteria(candidate, study.compression.gate)) if engine != base else []
        counts = (width.multiply_adds, sizes[0])
        found.append(Candidate(name, kind, width.removed, *counts, auc, candidate, tuple(faults), latency[TORCH]))
    return found


def _key(width: Width, precision: str, engine: str) -> str:
    return f"{width.removed:g} {precision} {engine}"

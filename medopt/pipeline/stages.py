"""What each stage does with the run so far. A stage reads files of earlier ones, writes its own, and returns facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medopt.compression.export import export_onnx
from medopt.compression.gate import Candidate, disagreement, judge
from medopt.compression.quantize import choose_calibration, quantize_int8
from medopt.config import Study
from medopt.data.cache import load_prepared
from medopt.evaluation.bootstrap import paired_difference
from medopt.evaluation.calibrated import Calibration, refuse_few
from medopt.evaluation.fitted import fit_on
from medopt.evaluation.metrics import auc
from medopt.evaluation.scored import Scored
from medopt.evaluation.thresholds import OperatingPoint
from medopt.inference.engines import Engine, load_batch, open_engine, run_files
from medopt.inference.latency import measure_latency
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.subgroups import subgroups
from medopt.records import SPLITS, Predictions, Reporter, Split, Verdict
from medopt.training.loop import load_best
from medopt.training.task import Prepared

Sets = Mapping[Split, Prepared]
KINDS = ("float", "int8")


@dataclass(frozen=True, slots=True)
class Judged:
    """What validation decided: calibration, operating point and engines of each model, and the gate's verdict."""

    calibrations: dict[str, Calibration]
    points: dict[str, OperatingPoint]
    engines: dict[str, list[str]]
    latency_ms: dict[str, float]
    verdict: Verdict

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Judged:
        """From JSON."""
        verdict = facts["verdict"]
        return cls(
            {kind: Calibration.from_dict(fit) for kind, fit in facts["calibrations"].items()},
            {kind: OperatingPoint.from_dict(point) for kind, point in facts["points"].items()},
            facts["engines"],
            facts["latency_ms"],
            Verdict(verdict["passed"], tuple(verdict["reasons"]), verdict["figures"]),
        )


def refuse_few_to_calibrate(study: Study, sets: Sets) -> None:
    """Raise ConfigError before training where validation is too small for the calibration that is asked for."""
    if study.evaluation.calibration == "isotonic":
        refuse_few(_labels(study, sets["val"]), study.data.outputs, study.data.task)


def validation_score(study: Study, sets: Sets) -> Any:
    """The function that training judges an epoch by: AUC on validation, NaN where it is not defined."""
    labels = _labels(study, sets["val"])

    def score(logits: NDArray[np.float64], _targets: NDArray[np.float64]) -> float:
        blank = _predictions(study, "float", "val", sets["val"], logits, labels)
        scored = Scored(blank, study.data.task)
        return float(auc(scored.score, scored.target)[0]) if np.isfinite(logits).all() else float("nan")

    return score


def compress(
    study: Study, sets: Sets, weights: Path, folder: RunFolder, reporter: Reporter, pruned: Path | None = None
) -> dict[str, Any]:
    """Export the best weights to float ONNX, and quantize that to int8, calibrated on training images only.

    Where there are `pruned` weights, int8 is made of these, by way of models/pruned.onnx.
    """
    model = load_best(study, weights)
    train = sets["train"]
    picked = choose_calibration(len(train.files), study.compression.calibration_images, study.seed)
    images = [load_prepared(train.files[index]) for index in picked]
    source, target = folder.models / "float.onnx", folder.models / "int8.onnx"
    parity = export_onnx(model, np.stack(images[:8]), source, study.compression.opset)
    if pruned is not None:
        source = folder.models / "pruned.onnx"
        narrow = export_onnx(load_best(study, pruned), np.stack(images[:8]), source, study.compression.opset)
        parity = max(parity, narrow)
    quantize_int8(source, target, images)
    reporter.message(f"exported (largest logit difference {parity:.1e}), int8 calibrated on {len(picked)} images")
    return {"parity": parity, "calibration": [train.cases[index].case_id for index in picked]}


def judge_models(study: Study, sets: Sets, weights: Sequence[Path], folder: RunFolder) -> Judged:
    """Calibrate, choose operating points and let the gate decide, all on validation.

    `weights` are those of the network; of each member's, where the models are an ensemble.
    """
    paths = {kind: folder.models / f"{kind}.onnx" for kind in KINDS}
    threads, names = study.compression.threads, [str(name) for name in study.compression.engines]
    engines = {(kind, name): open_engine(name, paths[kind], threads) for kind in KINDS for name in names}
    latency = _latencies(study, sets["val"], weights, engines)
    fastest = min(names, key=lambda name: latency[f"{name}_float"])
    tables = {key: _predict(study, key[0], "val", sets["val"], engine) for key, engine in engines.items()}
    before = tables["float", fastest]
    reference = fit_on(before, study.evaluation, study.data.task)
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    fitted: dict[str, Scored] = {}
    candidates = []
    for name in names:
        after = tables["int8", name]
        fitted[name] = fit_on(after, study.evaluation, study.data.task)
        random = np.random.default_rng(study.seed)
        pair = (reference, fitted[name])
        flips, shift, largest = disagreement(
            before, after, study.data.task, [one.calibration for one in pair], [one.operating_point for one in pair]
        )
        limits = {"bootstrap": study.evaluation.bootstrap, "confidence": study.evaluation.confidence}
        candidates.append(
            Candidate(
                engine=name,
                auc_difference=paired_difference(before, after, study.data.task, generator=random, **limits),  # type: ignore[arg-type]
                decision_flips=flips,
                probability_shift=shift,
                largest_shift=largest,
                int8_ms=latency[f"{name}_int8"],
                float_ms=latency[f"{fastest}_float"],
                size_ratio=sizes["int8"] / sizes["float"],
            )
        )
    chosen = min(names, key=lambda name: latency[f"{name}_int8"])
    verdict = judge(candidates, study.compression.gate, (_auc(study, before), _auc(study, tables["int8", chosen])))
    passed = verdict.figures["engines_passed"] or [verdict.figures["engine"]]
    ranked = sorted(names, key=lambda name: latency[f"{name}_float"])
    return Judged(
        calibrations={"float": reference.calibration, "int8": fitted[passed[0]].calibration},
        points={"float": reference.operating_point, "int8": fitted[passed[0]].operating_point},
        engines={"float": ranked, "int8": passed},
        latency_ms=latency,
        verdict=verdict,
    )


def predict_splits(study: Study, sets: Sets, folder: RunFolder, judged: Judged) -> list[Predictions]:
    """Validation and test predictions of both models, each in the engine that will serve it."""
    tables, parts = [], [sets[split] for split in SPLITS[1:]]
    groups = subgroups(Prepared([c for part in parts for c in part.cases], [f for part in parts for f in part.files]))
    for kind in KINDS:
        engine = open_engine(judged.engines[kind][0], folder.models / f"{kind}.onnx", study.compression.threads)
        predicted = [_predict(study, kind, split, sets[split], engine) for split in SPLITS[1:]]
        tables.append(replace(Predictions.joined(kind, predicted), subgroups=groups))
    return tables


def _auc(study: Study, table: Predictions) -> float | None:
    scored = Scored(table, study.data.task)
    value = float(auc(scored.score, scored.target)[0])
    return value if np.isfinite(value) else None


def _latencies(
    study: Study, val: Prepared, weights: Sequence[Path], engines: Mapping[tuple[str, str], Engine]
) -> dict[str, float]:
    """Median milliseconds of one image: torch, and each engine with the float and the int8 model, interleaved."""
    image = load_batch(val.files[:1])
    networks, tensor = [load_best(study, path) for path in weights], torch.from_numpy(image)

    def eager() -> None:
        with torch.inference_mode():
            for network in networks:
                network(tensor)

    runs = {f"{name}_{kind}": (lambda e=engine: e.run(image)) for (kind, name), engine in engines.items()}
    return measure_latency({"torch_float": eager, **runs})


def _predict(study: Study, kind: str, split: Split, part: Prepared, engine: Engine) -> Predictions:
    return _predictions(study, kind, split, part, run_files(engine, part.files), _labels(study, part))


def _labels(study: Study, part: Prepared) -> NDArray[np.int64]:
    """(N,) class indices, or (N, K) zeros and ones for a multi-label study."""
    labels = np.array([case.label for case in part.cases], np.int64)
    return labels if study.data.task == "multilabel" else labels[:, 0]


def _predictions(
    study: Study, kind: str, split: Split, part: Prepared, logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> Predictions:
    def column(values: Sequence[str]) -> NDArray[np.str_]:
        return np.array(values, dtype=np.str_)

    return Predictions(
        model=kind,
        case_id=column([case.case_id for case in part.cases]),
        patient_id=column([case.patient_id for case in part.cases]),
        site=column([case.site for case in part.cases]),
        split=column([split] * len(part.cases)),
        labels=labels,
        logits=logits,
    )

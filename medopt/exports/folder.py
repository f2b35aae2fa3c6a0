"""What all exports share: the checked release, a folder written whole or not at all, `medopt.json` beside the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt import __version__
from medopt.core.errors import ConfigError, ReleaseError
from medopt.core.files import file_digest, storage, write_json
from medopt.core.records import FloatArray, is_exclusive
from medopt.evaluation.verdict_lines import verdict_lines
from medopt.inference.engines import FEATURES, INPUT, OUTPUT, open_engine
from medopt.release.golden import golden_batch
from medopt.release.layout import (
    SUMS,
    Kind,
    ReleaseInfo,
    check_chain,
    check_sums,
    read_info,
    refuse_channels,
    refuse_covariates,
)
from medopt.transforms.prepare import PrepareChain

FACTS = "medopt.json"
CHECKED = ("tool", "largest_logit_difference")
# Largest difference of a logit that reading back may show, relative to the largest logit.
PARITY = 1e-3


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written and how it was checked; a form leaves out (None) what does not apply to it."""

    largest_logit_difference: dict[Kind, float]
    """Of the golden cases, between the export read back and the release, for each model."""
    tool: str | None = None
    """What the export was read back with."""
    model: Kind | None = None
    models: list[Kind] | None = None
    not_exported: list[Kind] | None = None
    """Models whose engine did not pass the release's gate."""
    name: str | None = None
    file: str | None = None
    backend: str | None = None
    engine: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A checked release: what an export is made of, and the golden images (N, C, *size) that it must answer."""

    folder: Path
    info: ReleaseInfo
    chain: PrepareChain
    golden: FloatArray

    @classmethod
    def read(cls, folder: Path) -> ExportSource:
        """Raises ReleaseError where a file was changed or this version builds another chain."""
        check_sums(folder)
        info = read_info(folder)
        refuse_channels(info, "an export takes one image a case")
        refuse_covariates(info, "an export takes images alone")
        chain = check_chain(info)
        return cls(folder, info, chain, golden_batch(folder, chain))

    def model(self, kind: Kind) -> Path:
        """The ONNX file."""
        return self.folder / self.info.models[kind].file

    def passed(self, engine: str) -> list[Kind]:
        """The models that may run in an engine, int8 first."""
        kinds: tuple[Kind, ...] = ("int8", "float")
        return [kind for kind in kinds if engine in self.info.models[kind].engines]

    def answers(self, kind: Kind, engine: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits and, where the model has them, features of the golden images, as the release gives them."""
        opened = open_engine(engine, self.model(kind), 1)
        return opened.run_both(self.golden) if self.info.domain else (opened.run(self.golden), None)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a folder beside `target` that gets its name at the end; nothing is left where something goes wrong.

    Raises ConfigError where `target` exists already, StorageError where it may not be written.
    """
    if target.exists():
        raise ConfigError(f"{target} exists. An export is written to a new folder: choose another --out, or delete it.")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with storage(target):
            part.mkdir(parents=True)
            yield part
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def compare(what: str, logits: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """The largest logit difference between an export, read back, and the release; raises ReleaseError above PARITY."""
    if logits.shape != expected.shape:
        raise ReleaseError(f"{what} answers {logits.shape} where the release answers {expected.shape}; not exported.")
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    if not difference <= PARITY * max(1.0, float(np.abs(expected).max())):
        raise ReleaseError(
            f"{what}, read back, differs from the release by {difference:.2g} on a golden case's logit; not exported."
        )
    return difference


def write_facts(folder: Path, source: ExportSource, exported: Mapping[Kind, str], result: ExportResult | None) -> None:
    """Write `medopt.json`: all that turns logits into the release's probabilities and decisions, and every hash.

    `exported` are the files of the models, by their path in `folder`; `result` says how they were read back.
    """
    info = source.info
    models = {
        kind: {"file": name, **info.models[kind].model_dump(mode="json", exclude={"file"})}
        for kind, name in exported.items()
    }
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): file_digest(path) for path in files if path.name != FACTS}
    facts = {
        "format": 1,
        "medopt": __version__,
        "release": {
            "study": info.study,
            "question": info.question,
            "intended_use": info.intended_use,
            "created": info.created,
            "sha256": file_digest(source.folder / SUMS),
            "verdicts": [line.text for line in verdict_lines(info.figures, info.gate)],
        },
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["batch", info.prepare.input_channels, *info.prepare.size],
            "range": [0, 1],
            "prepare": info.prepare.model_dump(mode="json"),
            "chain_fingerprint": info.chain_fingerprint,
        },
        "outputs": {OUTPUT: _meaning(info), FEATURES: "what the last layer works on; the out-of-domain check uses it"},
        "task": info.task,
        "labels": info.labels,
        "models": models,
        "not_carried": _not_carried(info),
        "checked": {} if result is None else {key: value for key, value in asdict(result).items() if key in CHECKED},
        "files": hashes,
    }
    write_json(folder / FACTS, facts)


def _meaning(info: ReleaseInfo) -> str:
    """How a reader without medopt turns logits into probabilities and decisions."""
    if is_exclusive(info.task):
        grade = "the lowest grade up to which half of the probability lies"
        which = grade if info.task == "ordinal" else "the most probable label"
        text = f"probabilities = softmax(calibrated logits); decided: {which}"
    elif info.task == "multilabel":
        text = "probability of each label = sigmoid(calibrated logit); decided: those that reach their threshold"
    else:
        text = f"probability of {info.labels[1]} = sigmoid(calibrated logit); decided: it, from the threshold on"
    if scale := info.number:
        steps = f"{scale.spread:g} * output"
        value = f"{scale.threshold:g} * exp({steps})" if scale.scale == "log" else f"{scale.threshold:g} + {steps}"
        text = f"the output, not calibrated, is the {scale.quantity} in {scale.unit}: {value}; {text}"
    scaled = "calibrated: logit / temperature, or with method logistic slopes * logit + biases"
    sets = (
        "sets, where there is no band: a class is possible from its floor on (each label, of several labels then the "
    )
    sets += "absence of each, by 1 - p); undecided unless the decided class alone is possible"
    band = "a probability within band (low <= p < high) is undecided"
    return f"{text}; {scaled}; {band}; {sets}; isotonic: curves map, linearly"


def _not_carried(info: ReleaseInfo) -> list[str]:
    notes = ["reading and checking the scan: the model takes prepared images (input.prepare says how they are made)"]
    if info.domain:
        notes.append(
            "the out-of-domain check: scans unlike those of training are not declined outside medopt, "
            "so do not use what the model gives for such a scan, its logits included"
        )
    return notes

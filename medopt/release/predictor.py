"""A release, opened: a scan in, probabilities and the decision out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.errors import ReleaseError
from medopt.inference.engines import Engine, open_engine
from medopt.records import FloatArray, Volume
from medopt.release.contents import Kind, ReleaseInfo, check_chain, check_sums, read_info
from medopt.transforms.prepare import PrepareChain

UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a release says of one scan. `decision` names the label, or the labels of a multi-label study.

    It is UNDECIDED where the probability lies in the band that validation chose around the threshold.
    """

    probabilities: dict[str, float]
    decision: str
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Predictor:
    """An opened release: its chain, one of its models, and the engine that runs it."""

    info: ReleaseInfo
    kind: Kind
    chain: PrepareChain
    engine: Engine

    @classmethod
    def open(cls, folder: Path, kind: Kind = "int8", engine: str | None = None, threads: int = 0) -> Predictor:
        """Open a release after its files and its chain were checked.

        `engine` None takes the fastest of those that passed the gate. Raises ReleaseError.
        """
        check_sums(folder)
        info = read_info(folder)
        chain = check_chain(info)
        model = info.models[kind]
        if engine is not None and engine not in model.engines:
            raise ReleaseError(
                f"{engine} did not pass the gate for the {kind} model; passed: {', '.join(model.engines)}."
            )
        return cls(info, kind, chain, open_engine(engine or model.engines[0], folder / model.file, threads))

    def predict(self, batch: FloatArray) -> list[Answer]:
        """Answers for prepared images (N, C, *size)."""
        return [self._answer(row) for row in self.engine.run(batch)]

    def predict_scan(self, scan: str | Path | Volume) -> Answer:
        """Read, prepare and predict one scan; raises DataError naming the file and the reason."""
        return self.predict(self.chain(scan).numpy()[None])[0]

    def _answer(self, logits: NDArray[np.float64]) -> Answer:
        model, labels = self.info.models[self.kind], self.info.labels
        table = model.calibration.probabilities(logits[None], self.info.task)
        decided = model.operating_point.decide(table)[0]
        values = [float(value) for value in table[0]]
        if self.info.task == "binary":
            values = [1 - values[0], values[0]]
        if model.operating_point.undecided(table)[0]:
            decision = UNDECIDED
        elif self.info.task == "multilabel":
            decision = ";".join(name for name, yes in zip(labels, decided, strict=True) if yes)
        else:
            decision = labels[int(decided)]
        return Answer(dict(zip(labels, values, strict=True)), decision, tuple(float(value) for value in logits))

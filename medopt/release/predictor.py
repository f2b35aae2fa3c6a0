"""A release, opened: a scan in, probabilities and the decision out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import ReleaseError
from medopt.core.records import FloatArray, Volume
from medopt.imaging.acquisition import Acquisition
from medopt.inference.engines import Engine, Mode, unsupported_reason
from medopt.inference.runtime import Setting
from medopt.release.layout import Kind, ReleaseInfo, check_chain, check_sums, read_info
from medopt.release.ood_check import OutOfDomainCheck, blank
from medopt.release.runtime import DEFAULT_BATCH, setting_for
from medopt.transforms.prepare import PrepareChain

UNDECIDED = "undecided"
PLAIN = Setting(engine="onnxruntime")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a release says of one scan. `decision` names the label, or the labels of a multi-label study.

    It is UNDECIDED where the probability lies in the band that validation chose around the threshold.

    `declined` says why the release does not vouch for this scan: it is unlike those it was trained on. Its decision is
    then empty; the probabilities are what the model made of it all the same, for whoever looks into the case.
    `distances` are how far the scan lies from training in content and texture, in units of the gate's limits.
    """

    probabilities: dict[str, float]
    decision: str
    logits: tuple[float, ...]
    declined: str = ""
    distances: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Predictor:
    """An opened release: its chain, one of its models, the engine that runs it, and the gate before its answers."""

    info: ReleaseInfo
    kind: Kind
    chain: PrepareChain
    engine: Engine
    domain: OutOfDomainCheck | None = None
    setting: Setting = PLAIN
    note: str = ""
    """Why settings measured for this release were found and not used."""

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: Kind = "int8",
        engine: str | None = None,
        threads: int = 0,
        mode: Mode = "latency",
        setting: Setting | None = None,
    ) -> Predictor:
        """Open a release after its files and its chain were checked.

        `setting` says how it runs. Without one, and without `engine` and `threads`, that is what `medopt tune runtime`
        found for `mode` here; else the named engine, or the fastest of those that passed the gate. Raises ReleaseError.
        """
        check_sums(folder)
        info = read_info(folder)
        chain = check_chain(info)
        model, note = info.models[kind], ""
        if kind == "int8" and (reason := unsupported_reason(info.profile)):
            raise ReleaseError(
                f"The release was made for {info.profile}, and {reason}. Use the float model, or build the release "
                "with compression.profile: cpu."
            )
        if setting is None:
            setting, note = setting_for(folder, info, kind, mode)
            if engine is not None or threads:
                batch = 1 if mode == "latency" else DEFAULT_BATCH
                setting = Setting(engine=engine or model.engines[0], mode=mode, threads=threads, batch=batch)
                note = ""
        if setting.engine not in model.engines:
            raise ReleaseError(
                f"{setting.engine} did not pass the gate for the {kind} model; passed: {', '.join(model.engines)}."
            )
        opened = setting.open(folder / model.file)
        domain = OutOfDomainCheck.read(folder / info.domain) if info.domain else None
        return cls(info, kind, chain, opened, domain, setting, note)

    def prepare(self, scan: str | Path | Volume) -> tuple[FloatArray, Acquisition]:
        """A scan's tensor (C, *size), and what the gate wants to know of its header; raises DataError."""
        volume = scan if isinstance(scan, Volume) else self.chain.read(scan)
        facts = Acquisition.of(volume)
        image = self.chain(volume) if volume is scan else self.chain.consume(volume, f"{scan}: ")
        return image.numpy(), facts

    def predict(self, batch: FloatArray, facts: Sequence[Acquisition | None] | None = None) -> list[Answer]:
        """Answers for prepared images (N, C, *size); `facts` is what `prepare` gave beside each of them."""
        if self.domain is None:
            return [self._answer(row, blank(image)) for row, image in zip(self.engine.run(batch), batch, strict=True)]
        logits, features = self.engine.run_both(batch)
        distances = self.domain.distances(self.kind, features, batch)
        reasons = self.domain.reasons(batch, distances, facts or [None] * len(batch))
        found = zip(logits, reasons, distances.tolist(), strict=True)
        return [self._answer(row, reason, (content, texture)) for row, reason, (content, texture) in found]

    def predict_scan(self, scan: str | Path | Volume) -> Answer:
        """Read, prepare and predict one scan; raises DataError naming the file and the reason."""
        image, facts = self.prepare(scan)
        return self.predict(image[None], [facts])[0]

    def _answer(
        self, logits: NDArray[np.float64], declined: str, distances: tuple[float, float] | None = None
    ) -> Answer:
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
        shown = dict(zip(labels, values, strict=True))
        return Answer(shown, "" if declined else decision, tuple(float(one) for one in logits), declined, distances)

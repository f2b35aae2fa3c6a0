"""An opened release: a scan in, probabilities and the decision out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import ReleaseError
from medopt.core.format import amount_text, unit_text
from medopt.core.number_scale import NumberScale
from medopt.core.records import FloatArray, Task, Volume, has_one_output
from medopt.core.run_paths import find_release
from medopt.imaging.acquisition import Acquisition
from medopt.imaging.channels import ScanPath, scan_name
from medopt.inference.engines import Engine, Mode, unsupported_reason
from medopt.inference.runtime import Setting
from medopt.manifest.covariates import CovariateEncoder, EncodedCase
from medopt.metrics.numbers import Margin
from medopt.metrics.thresholds import OperatingPoint
from medopt.release.case_covariates import Cells, given_cells, headers_of, with_headers
from medopt.release.layout import Kind, ReleaseInfo, check_chain, check_sums, read_info
from medopt.release.ood_check import OutOfDomainCheck, blank
from medopt.release.runtime import DEFAULT_BATCH, setting_for
from medopt.release.signature import check_trusted
from medopt.transforms.prepare import PrepareChain

UNDECIDED = "undecided"
PLAIN = Setting(engine="onnxruntime")


@dataclass(frozen=True, slots=True)
class NumberAnswer:
    """A predicted number, and the interval that holds the true one with the promised probability (`Margin`).

    `low` and `high` are None where too few validation patients were there to promise one.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    quantity: str
    coverage: float

    @property
    def text(self) -> str:
        """In a few words, as in 3120 mm3 (2850 to 3400)."""
        value = f"{amount_text(self.value)}{unit_text(self.unit)}"
        if self.low is None or self.high is None:
            return value
        return f"{value} ({amount_text(self.low)} to {amount_text(self.high)})"

    @classmethod
    def of(cls, output: float, scale: NumberScale, margin: Margin | None) -> NumberAnswer:
        """The number that an output of the network is."""
        reach = None if margin is None else margin.reach
        low, high = (None, None) if reach is None else scale.numbers([output - reach, output + reach]).tolist()
        coverage = 0.0 if margin is None else margin.coverage
        return cls(float(scale.numbers(output)), low, high, scale.unit, scale.quantity, coverage)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a release says about one scan."""

    probabilities: dict[str, float]
    """Calibrated probability of each label, also where the scan was declined, for whoever looks into the case."""
    decision: str
    """The label; those of a multi-label study joined by semicolons, with `undecided:LABEL` for one that is left so.
    UNDECIDED where the probability lies in the band that validation chose around the threshold, or where the prediction
    set is not one class; empty where the scan was declined."""
    logits: tuple[float, ...]
    declined: str | None = None
    """Why the release gives no decision: the scan is unlike those it was trained on. None: it was not declined."""
    number: NumberAnswer | None = None
    """Of a regression study, also where the scan was declined."""
    distances: tuple[float, float] | None = None
    """How far the scan is from training in content and texture, in units of the out-of-domain check's limits."""
    missing: tuple[str, ...] = ()
    """Covariates that counted as missing: not given, or with a value that training did not have."""

    def is_undecided(self, label: str) -> bool:
        """Whether the release leaves open if the scan has the label; a declined scan is not asked."""
        return self.decision == UNDECIDED or f"{UNDECIDED}:{label}" in self.decision.split(";")


class PreparedCase(NamedTuple):
    """A scan as the model takes it: its tensor (C, *size), its acquisition, and the cells of its covariates."""

    image: FloatArray
    acquisition: Acquisition
    cells: Cells


def decisions_of(
    labels: Sequence[str], task: Task, point: OperatingPoint, probability: NDArray[np.floating]
) -> Iterator[str]:
    """The decision on each case, as Answer has it; `probability` (N, K) calibrated, of the outputs."""
    for decided, undecided in zip(point.decide(probability), point.undecided(probability), strict=True):
        if task == "multilabel":
            rows = zip(labels, decided, np.broadcast_to(undecided, len(labels)), strict=True)
            names = [f"{UNDECIDED}:{name}" if is_open else name for name, yes, is_open in rows if yes or is_open]
            yield ";".join(names)
        else:
            yield UNDECIDED if undecided else labels[int(decided)]


@dataclass(frozen=True, slots=True)
class Release:
    """An opened release: its chain, one of its models, the engine that runs it, and its out-of-domain check.

    Example::

        release = medopt.load_release("runs/phantom")
        answer = release.predict("scan.dcm")
        answer.probabilities, answer.decision, answer.declined
    """

    info: ReleaseInfo
    kind: Kind
    chain: PrepareChain
    engine: Engine
    domain: OutOfDomainCheck | None = None
    setting: Setting = PLAIN
    note: str = ""
    """Why the settings measured for this release are not used; empty where they are, or where there are none."""

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: Kind = "int8",
        engine: str | None = None,
        threads: int = 0,
        mode: Mode = "latency",
        setting: Setting | None = None,
    ) -> Release:
        """Open a release folder after its files and its chain were checked; `load_release` takes other folders, too.

        `setting` says how it runs. Without one, and without `engine` and `threads`, it is what `medopt tune runtime`
        measured for `mode` here, if it did; else the named engine, or the fastest of those that passed the gate.
        Raises ReleaseError.
        """
        check_sums(folder)
        check_trusted(folder)
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

    def prepare(self, scan: ScanPath | Volume) -> tuple[FloatArray, Acquisition]:
        """A scan's tensor (C, *size), and its acquisition as the out-of-domain check needs it; raises DataError."""
        if isinstance(scan, Volume):
            return self.chain(scan).numpy(), Acquisition.from_volume(scan)
        volume = self.chain.read(scan)
        acquisition = Acquisition.from_volume(volume)
        return self.chain.consume(volume, f"{scan_name(scan)}: ").numpy(), acquisition

    def prepare_case(self, scan: ScanPath | Volume, covariates: Mapping[str, object] | None = None) -> PreparedCase:
        """A scan as `predict` takes it; raises DataError."""
        wanted = self.info.covariates
        cells = given_cells(wanted, covariates)
        if not isinstance(scan, Volume):
            cells = with_headers(wanted, cells, headers_of(wanted, scan))
        return PreparedCase(*self.prepare(scan), cells)

    def predict(self, scan: ScanPath | Volume, covariates: Mapping[str, object] | None = None) -> Answer:
        """Read, prepare and predict one scan: a file, a folder of DICOM slices, or a Volume.

        Where a case has several images: a tuple of their paths, in the order of `info.prepare.channels`. `covariates`
        are those of `info.covariates` by name, as in {"age": 61}; of the others, those with a DICOM element come from
        the scan's header, and the rest is missing.

        Raises DataError naming the file and the reason where it cannot be read or prepared.
        """
        case = self.prepare_case(scan, covariates)
        return self.predict_batch(case.image[None], [case.acquisition], [case.cells])[0]

    def predict_batch(
        self,
        images: FloatArray,
        acquisitions: Sequence[Acquisition | None] | None = None,
        cells: Sequence[Cells] | None = None,
    ) -> list[Answer]:
        """Answers for prepared images (N, C, *size), with the acquisitions and cells that `prepare_case` gave.

        Raises DataError where the model gives no finite logit, or a cell of a covariate cannot be read.
        """
        distances: list[tuple[float, float] | None] = [None] * len(images)
        if self.domain is None:
            logits, count = self.engine.run(images), len(self.info.prepare.channel_names)
            reasons = [blank(image, count) for image in images]
        else:
            logits, features = self.engine.run_both(images)
            apart = self.domain.distances(self.kind, features, images)
            reasons = self.domain.reasons(images, apart, acquisitions or [None] * len(images))
            distances = [(content, texture) for content, texture in apart.tolist()]
        encoded = self._encoded(cells or [{}] * len(images))
        if term := self.info.models[self.kind].covariates:
            logits = logits + term.logits(np.array([case.values for case in encoded]))
        rows = zip(logits, reasons, distances, encoded, strict=True)
        return [self._answer(*row) for row in rows]

    def _encoded(self, cells: Sequence[Cells]) -> list[EncodedCase]:
        """The covariates of cases as numbers; raises DataError."""
        encoder = CovariateEncoder(self.info.covariates)
        return [encoder.encode(one) for one in cells]

    def _answer(
        self,
        logits: NDArray[np.float64],
        reason: str,
        distances: tuple[float, float] | None,
        covariates: EncodedCase,
    ) -> Answer:
        declined = "; ".join(filter(None, (reason, covariates.declined)))
        model, labels = self.info.models[self.kind], self.info.labels
        table = model.calibration.probabilities(logits[None], self.info.task)
        values = [float(value) for value in table[0]]
        if has_one_output(self.info.task):
            values = [1 - values[0], values[0]]
        probabilities = dict(zip(labels, values, strict=True))
        (decision,) = [""] if declined else decisions_of(labels, self.info.task, model.operating_point, table)
        scale = self.info.number
        number = None if scale is None else NumberAnswer.of(float(logits[0]), scale, model.margin)
        given = tuple(logits.tolist())
        return Answer(probabilities, decision, given, declined or None, number, distances, covariates.missing)


def load_release(path: str | Path, kind: Kind = "int8", engine: str | None = None, threads: int = 0) -> Release:
    """Open a release; what `medopt predict` does before it reads a scan.

    Args:
        path: a release folder, the folder of a run, or the folder of a study's runs: then the newest run's release.
        kind: the model, int8 or float.
        engine: onnxruntime or openvino; None: the fastest that passed the gate, or what `medopt tune runtime` found.
        threads: threads of the engine; 0: all cores.

    Raises ReleaseError where there is no release, where a file of it was changed, or where this machine or this version
    of medopt cannot give the answers that it was released with.

    >>> import medopt
    >>> from pathlib import Path
    >>> manifest = medopt.draw_study("phantom-data/phantom", patients=30)
    >>> _ = Path("nodules.yaml").write_text('''
    ... name: nodules
    ... question: Is there a nodule?
    ... data: {manifest: phantom/manifest.csv, root: phantom, labels: [no_nodule, nodule]}
    ... prepare: {size: [32, 32]}
    ... training: {epochs: 2}  # too few to learn anything
    ... evaluation: {bootstrap: 200, shift_cases: 0, explain: 0}
    ... compression: {gate: {max_decision_flips: 1, max_probability_shift: 1, auc_margin: 1, min_speedup: 0}}
    ... ''')
    >>> run = medopt.run("nodules.yaml", data="phantom-data", override=("A. Reader", "an example"))
    >>> release = medopt.load_release("runs/nodules")  # or run.folder, or run.release
    >>> answer = release.predict(manifest.parent / "images/site_a/phantom-a001_1.dcm")
    >>> sorted(answer.probabilities), bool(answer.decision or answer.declined)
    (['no_nodule', 'nodule'], True)
    """
    return Release.open(find_release(path), kind, engine, threads)

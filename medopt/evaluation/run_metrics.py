"""`metrics.json`: all figures of a run, and the one reading and writing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from medopt.core.covariates import CovariateTerms
from medopt.core.files import write_json
from medopt.core.provenance import Machine
from medopt.core.records import Estimate, Kind, NotDefined
from medopt.core.result import ByKind, Result, by_kind, read_json
from medopt.evaluation.analysis_results import (
    BaselinesResult,
    DomainResult,
    ExplanationResult,
    PruningStep,
    RobustnessResult,
)
from medopt.evaluation.gate_verdict import GateRecord
from medopt.evaluation.guarantee import GuaranteeTable
from medopt.evaluation.model_verdict import NOT_SHOWN, ModelVerdict
from medopt.evaluation.subgroup_results import SubgroupResults
from medopt.metrics.calibration import Calibration, IsotonicCurve, Method
from medopt.metrics.figures import Figures
from medopt.metrics.grade_figures import GradeFigures
from medopt.metrics.net_benefit import DecisionCurve
from medopt.metrics.number_figures import NumberFigures
from medopt.metrics.numbers import Margin
from medopt.metrics.selective import CoverageRisk
from medopt.metrics.thresholds import OperatingPoint

METRICS_FILE = "metrics.json"
ANALYSES: dict[str, Any] = {
    "baselines": BaselinesResult,
    "pruning": dict[str, PruningStep],
    "robustness": RobustnessResult,
    "explanations": ExplanationResult,
    "domain": DomainResult,
}
"""The analyses that have a file of their own beside `metrics.json`, under their names, and what it holds."""


class CalibrationErrors(Result):
    """Calibration errors over bins of equal width (`ece`) and of equal count (`ace`)."""

    ece: float
    ace: float


class CalibrationResult(Result):
    """A calibration fitted on validation, and the errors `before` and `after` it; None: there were no cases."""

    method: Method
    temperature: float
    curves: tuple[IsotonicCurve, ...]
    note: str
    before: CalibrationErrors | None
    after: CalibrationErrors | None
    slopes: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()

    @property
    def calibration(self) -> Calibration:
        """The calibration itself."""
        return Calibration(self.method, self.temperature, self.curves, self.note, self.slopes, self.biases)


class ModelResult(Result):
    """All results of one model on one set of cases; the net benefit by output.

    `number` are the figures of a regression study's number, `grades` those of an ordinal study's grades.
    """

    figures: Figures
    calibration: CalibrationResult
    net_benefit: dict[str, DecisionCurve | NotDefined]
    selective: CoverageRisk | NotDefined
    subgroups: SubgroupResults
    number: NumberFigures | None = None
    grades: GradeFigures | None = None


class PatientResult(Result):
    """Figures of patients instead of images, decided anew on validation's patients; else a note that says why not."""

    note: str = ""
    aggregate: str = ""
    operating_point: OperatingPoint | None = None
    test: Figures | None = None


class Int8Change(Result):
    """What int8 changes on the test split: the AUC (paired), and the share of decisions that change."""

    auc_difference: Estimate
    decision_flips: Estimate


class KeptWeights(Result):
    """The epoch (from 1, of `epochs`) whose weights a training kept, and why; None: a linear model's, of no epoch."""

    epoch: int | None
    epochs: int
    reason: str

    @property
    def sentence(self) -> str:
        """The same in words."""
        which = f"those of epoch {self.epoch} of {self.epochs}" if self.epoch else "not tuned"
        return f"The network's weights are {which}: {self.reason}."


class ReleaseFigures(Result):
    """What a release tells of itself: those results of the run, under the same names."""

    test: ByKind[Figures]
    sites: dict[str, ByKind[Figures]]
    latency_ms: dict[str, float]
    size_bytes: ByKind[int]
    confidence: float
    baselines: BaselinesResult | None = None
    calibration: ByKind[CalibrationResult]
    subgroups: ByKind[SubgroupResults]
    robustness: RobustnessResult | None = None
    domain: DomainResult | None = None
    explanations: ExplanationResult | None = None
    pruning: dict[str, PruningStep] | None = None
    verdict: ModelVerdict | None = None
    number: ByKind[NumberFigures] | None = None
    grades: ByKind[GradeFigures] | None = None
    guarantee: GuaranteeTable | None = None


class RunMetrics(Result):
    """All figures of a run. Attributes have the names of the keys of `metrics.json`.

    `validation`, `test`, `sites` (by name), `calibration`, `net_benefit` (by output), `selective`, `subgroups` and
    `patients` hold a result of each model: `metrics.test.int8.auc`. All but `validation` are of the test split, which
    is scored once. `kept` says which epoch's weights these are (None for an ensemble, and in version 0.1.0),
    `prior_shift` what class weights and balanced sampling added to each output's logits. `verdict` is on the model
    itself (None in version 0.1.0), `gate` on int8 against float, `guarantee` what is promised of int8 (None in earlier
    versions). `latency_ms` are medians of one image by engine and model. Of a regression study `number` are the figures
    of its number and `margin` is how far it may be from the truth; of an ordinal study `grades` are those of its
    grades. `covariates` are the coefficients of the covariates of a study that has some. `baselines`, `pruning`,
    `robustness`, `explanations` and `domain` lie in files of their own beside `metrics.json`, and are None where the
    study does not ask for them.
    """

    schema_version: Literal[1]
    study: str
    seed: int
    mlflow_run_id: str | None
    data_notes: tuple[str, ...]
    validation: ByKind[Figures]
    test: ByKind[Figures]
    sites: dict[str, ByKind[Figures]]
    patients: ByKind[PatientResult]
    calibration: ByKind[CalibrationResult]
    net_benefit: ByKind[dict[str, DecisionCurve | NotDefined]]
    selective: ByKind[CoverageRisk | NotDefined]
    subgroups: ByKind[SubgroupResults]
    int8_on_test: Int8Change
    operating_point: ByKind[OperatingPoint]
    engine: ByKind[str]
    latency_ms: dict[str, float]
    size_bytes: ByKind[int]
    confidence: float
    gate: GateRecord
    machine: Machine
    packages: dict[str, str]
    kept: KeptWeights | None = None
    prior_shift: tuple[float, ...] = ()
    number: ByKind[NumberFigures] | None = None
    margin: ByKind[Margin] | None = None
    grades: ByKind[GradeFigures] | None = None
    guarantee: GuaranteeTable | None = None
    covariates: CovariateTerms | None = None
    verdict: ModelVerdict | None = None
    baselines: BaselinesResult | None = None
    pruning: dict[str, PruningStep] | None = None
    robustness: RobustnessResult | None = None
    explanations: ExplanationResult | None = None
    domain: DomainResult | None = None

    @model_validator(mode="before")
    @classmethod
    def _version_0_1_0(cls, values: Any) -> Any:
        """Files of medopt 0.1.0 name no schema version; theirs is the first."""
        return {"schema_version": 1} | values if isinstance(values, dict) else values

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run folder, or its `metrics.json`, with the analyses beside it; those of version 0.1.0, too.

        Raises DataError, naming the file and the key, where one is absent or holds something else.
        """
        path = path / METRICS_FILE if path.is_dir() else path
        return super().read(path).with_analyses(path.parent)

    def with_analyses(self, folder: Path) -> Self:
        """The same with those analyses whose files lie in the folder; raises DataError for a damaged one."""
        files = {name: folder / f"{name}.json" for name in ANALYSES}
        found = {name: read_json(path, ANALYSES[name]) for name, path in files.items() if path.exists()}
        return self.model_copy(update=found)

    @property
    def served_ms(self) -> ByKind[float]:
        """Milliseconds of one image in the engine that serves each model."""
        return by_kind(lambda kind: self.latency_ms[f"{self.engine[kind]}_{kind}"])

    @property
    def refusals(self) -> tuple[str, ...]:
        """All that the two verdicts have against a release, that on the model first; none where both let it pass."""
        model = "; ".join(self.verdict.reasons) if self.verdict else ""
        return (*([f"the model is {NOT_SHOWN} ({model})"] if model else []), *self.gate.reasons)

    @property
    def is_passed(self) -> bool:
        """Whether both verdicts passed the model, so that no override is needed."""
        return self.gate.passed and (self.verdict is None or self.verdict.better_than_chance)

    @property
    def is_released(self) -> bool:
        """Whether there is a release: both verdicts passed the model, or a person overrode them."""
        return self.is_passed or self.gate.override is not None

    @property
    def outcome(self) -> str:
        """How the run ended, in a word."""
        if self.is_passed:
            return "released"
        is_model = self.verdict is not None and not self.verdict.better_than_chance
        if self.gate.override:
            return f"released against the {'verdict on the model' if is_model else 'gate'}"
        return "model refused" if is_model else f"gate {'refused' if self.gate.outcome == 'refused' else 'cannot tell'}"

    def of_model(self, kind: Kind) -> ModelResult:
        """The results of one model on the test split."""
        return ModelResult(
            figures=self.test[kind],
            calibration=self.calibration[kind],
            net_benefit=self.net_benefit[kind],
            selective=self.selective[kind],
            subgroups=self.subgroups[kind],
            number=self.number[kind] if self.number else None,
            grades=self.grades[kind] if self.grades else None,
        )

    def for_release(self) -> ReleaseFigures:
        """What the release of this run tells of itself."""
        return ReleaseFigures(**{name: getattr(self, name) for name in ReleaseFigures.model_fields})

    def write(self, path: Path) -> None:
        """Write `metrics.json`, without the analyses, which have files of their own."""
        write_json(path, self.model_dump(mode="json", exclude_defaults=True, exclude=set(ANALYSES)))

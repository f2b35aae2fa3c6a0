"""What a release folder holds: `release.json`, two ONNX files, golden cases, a card, and the SHA-256 of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationError

from medopt.config import Covariate, Prepare, Profile, SeriesRules
from medopt.core import run_paths
from medopt.core.covariates import CovariateTerm
from medopt.core.errors import ReleaseError, listed
from medopt.core.files import file_digest, write_text
from medopt.core.number_scale import NumberScale
from medopt.core.provenance import CodeVersion, Machine
from medopt.core.records import Kind, Task, has_one_output
from medopt.core.result import Result
from medopt.evaluation.gate_verdict import GateRecord
from medopt.evaluation.run_metrics import ReleaseFigures
from medopt.metrics.calibration import Calibration
from medopt.metrics.conformal import PredictionSets
from medopt.metrics.numbers import Margin
from medopt.metrics.thresholds import OperatingPoint
from medopt.transforms.prepare import PrepareChain

INFO, CARD, GOLDEN, DOMAIN = "release.json", "CARD.md", "golden.json", "domain.json"
CARD_FACTS, SUMS = "card.json", run_paths.SUMS
SIGNATURE = f"{SUMS}.sig"
"""Beside the list and not in it: it is made of the list (`medopt.release.signature`)."""
MODELS: dict[Kind, str] = {"int8": "model.int8.onnx", "float": "model.float.onnx"}
FORMAT = 2


class ModelInfo(BaseModel):
    """One model of a release: its file, its calibration, its operating point, and the engines that may run it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    calibration: Calibration
    threshold: float | tuple[float, ...] | None
    rule: str
    band: tuple[float, float] | None = None
    margin: Margin | None = None
    """How far the number of a regression study may be from the truth."""
    sets: PredictionSets | None = None
    covariates: CovariateTerm | None = None
    """What the covariates add to the logits that the file gives of the image."""
    engines: list[str]

    @property
    def operating_point(self) -> OperatingPoint:
        """Threshold, band and prediction sets that turn probabilities into decisions."""
        return OperatingPoint(self.threshold, self.rule, band=self.band, sets=self.sets)


_COMPACT = PlainSerializer(lambda result: result.json_values())  # as in `metrics.json`


class Provenance(Result):
    """Where a release comes from: manifest, MLflow run, code, packages and machine; `data_notes` of the data check."""

    manifest_digest: str
    mlflow_run_id: str | None
    code: CodeVersion
    packages: dict[str, str]
    machine: Machine
    data_notes: tuple[str, ...]


class ReleaseInfo(BaseModel):
    """`release.json`: all that a server must know. A model's `engines` are in the order of their measured speed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2]
    study: str
    question: str
    intended_use: str = ""
    created: str
    task: Task
    labels: list[str]
    number: NumberScale | None = None
    """How the output of a regression study becomes a number."""
    covariates: list[Covariate] = []
    """What is asked for beside the image, and how training encoded it."""
    prepare: Prepare
    series: SeriesRules = SeriesRules()
    """Which series of a DICOM study the model was made for."""
    chain_fingerprint: str
    models: dict[Kind, ModelInfo]
    profile: Profile = "cpu"
    """The kind of machine that the int8 model was made for."""
    domain: str | None = None
    """The file of the out-of-domain check; None: there is none."""
    gate: Annotated[GateRecord, _COMPACT]
    figures: Annotated[ReleaseFigures, _COMPACT]
    provenance: Annotated[Provenance, _COMPACT]

    @property
    def reported_labels(self) -> list[str]:
        """The labels that have an output each, which results report: of a binary study the finding alone."""
        return self.labels[1:] if has_one_output(self.task) else self.labels


def refuse_channels(info: ReleaseInfo, what: str) -> None:
    """Raise ReleaseError where a case of the release has several images, which `what` does not do."""
    if names := info.prepare.channel_names:
        raise ReleaseError(
            f"A case of the release {info.study} has {len(names)} images ({', '.join(names)}): {what}. "
            "`medopt predict`, `medopt serve` and the node answer such cases."
        )


def refuse_covariates(info: ReleaseInfo, what: str) -> None:
    """Raise ReleaseError where the release answers by covariates, too, which `what` does not do."""
    if info.covariates:
        names = ", ".join(one.column for one in info.covariates)
        raise ReleaseError(
            f"The release {info.study} answers by the image and by covariates ({names}): {what}. `medopt predict`, "
            "`medopt serve`, the node and the MLflow model take them."
        )


def read_info(folder: Path) -> ReleaseInfo:
    """Read `release.json`; raises ReleaseError where it is absent, malformed, or of another format."""
    try:
        return ReleaseInfo.model_validate_json((folder / INFO).read_bytes())
    except OSError:
        raise ReleaseError(f"{folder} is not a release: there is no {INFO} in it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReleaseError(f"{folder / INFO} is not a release of format {FORMAT}: {where}: {first['msg']}.") from None


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the release but the list itself, by its path from there."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return {name: file_digest(path) for name, path in sorted(files.items()) if name not in (SUMS, SIGNATURE)}


def _listing(sums: dict[str, str]) -> str:
    return "".join(f"{value}  {name}\n" for name, value in sums.items())


def write_sums(folder: Path) -> None:
    """List the SHA-256 of every file of the release, in the form that `sha256sum -c` reads."""
    write_text(folder / SUMS, _listing(_sums(folder)))


def check_sums(folder: Path) -> None:
    """Refuse a release in which a file was changed, added or removed since it was built.

    That detects damage and mistakes; anyone who can write to the folder can write the list, too. Raises ReleaseError
    naming the files.
    """
    try:
        listing = (folder / SUMS).read_bytes().decode("utf-8")
        expected = {name: value for value, name in (line.split("  ", 1) for line in listing.splitlines())}
        actual = _sums(folder)
    except OSError as error:
        raise ReleaseError(f"{folder} is not a release: {error.filename}: {error.strerror}.") from None
    except ValueError:
        raise ReleaseError(f"{folder / SUMS} is not a list of checksums: the release was tampered with.") from None
    faults = [f"{name} is missing" for name in sorted(expected.keys() - actual.keys())]
    faults += [f"{name} does not belong to it" for name in sorted(actual.keys() - expected.keys())]
    faults += [f"{name} was changed" for name, value in actual.items() if expected.get(name, value) != value]
    if not faults and listing != _listing({name: actual[name] for name in expected}):
        faults = [f"{SUMS} was changed"]
    if faults:
        raise ReleaseError(f"The release {folder} is refused: {listed(faults)}. Take it again from where it was built.")


def check_chain(info: ReleaseInfo) -> PrepareChain:
    """The release's chain, built here; raises ReleaseError where this version would not build it the same way."""
    chain = PrepareChain(info.prepare)
    if chain.fingerprint != info.chain_fingerprint:
        raise ReleaseError(
            f"The release's preparation chain is {info.chain_fingerprint[:16]}, and this medopt builds "
            f"{chain.fingerprint[:16]} from the same settings: its pixels would differ from those of training. "
            f"Use medopt {info.provenance.packages.get('medopt', 'of the release')}, or build it again."
        )
    return chain

"""What a release folder holds: `release.json`, two ONNX files, golden cases, a card, and the SHA-256 of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medopt.config import Prepare, Task
from medopt.errors import ReleaseError, listed
from medopt.evaluation.thresholds import OperatingPoint
from medopt.provenance import file_digest, write_text
from medopt.transforms.prepare import PrepareChain

INFO, SUMS, CARD, GOLDEN = "release.json", "SHA256SUMS", "CARD.md", "golden.json"
Kind = Literal["int8", "float"]
FORMAT = 1


class ModelInfo(BaseModel):
    """One model of a release: its file, its calibration, its operating point, and the engines that may run it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    temperature: float
    threshold: float | tuple[float, ...] | None
    rule: str
    engines: list[str]

    @property
    def operating_point(self) -> OperatingPoint:
        """How its probabilities become decisions."""
        return OperatingPoint(self.threshold, self.rule)


class ReleaseInfo(BaseModel):
    """`release.json`: all that a server must know. `engines` of a model are in the order of their measured speed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    study: str
    question: str
    created: str
    task: Task
    labels: list[str]
    prepare: Prepare
    chain_fingerprint: str
    models: dict[Kind, ModelInfo]
    gate: dict[str, Any]
    figures: dict[str, Any]
    provenance: dict[str, Any]


def read_info(folder: Path) -> ReleaseInfo:
    """Read `release.json`; raises ReleaseError where it is absent, malformed, or of a later format."""
    try:
        return ReleaseInfo.model_validate_json((folder / INFO).read_bytes())
    except OSError:
        raise ReleaseError(f"{folder} is not a release: there is no {INFO} in it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReleaseError(f"{folder / INFO} is not a release of format {FORMAT}: {where}: {first['msg']}.") from None


def write_sums(folder: Path) -> None:
    """List the SHA-256 of every file of the release, in the form that `sha256sum -c` reads."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS]
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path) -> None:
    """Refuse a release of which a file was changed, added or taken away since it was built.

    Raises ReleaseError naming the files.
    """
    try:
        rows = [line.split("  ", 1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
        expected = {name: value for value, name in rows}
    except (OSError, ValueError):
        raise ReleaseError(f"{folder} has no readable {SUMS}: it is not a release, or was tampered with.") from None
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found.pop(SUMS, None)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} does not belong to it" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    faults += [f"{name} was changed" for name in both if file_digest(found[name]) != expected[name]]
    if faults:
        raise ReleaseError(f"The release {folder} is refused: {listed(faults)}. Take it again from where it was built.")


def check_chain(info: ReleaseInfo) -> PrepareChain:
    """The release's chain, built here; raises ReleaseError where this version would not build it the same way."""
    chain = PrepareChain(info.prepare)
    if chain.fingerprint != info.chain_fingerprint:
        raise ReleaseError(
            f"The release's preparation chain is {info.chain_fingerprint[:16]}, and this medopt builds "
            f"{chain.fingerprint[:16]} from the same settings: its pixels would differ from those of training. "
            f"Use medopt {info.provenance.get('packages', {}).get('medopt', 'of the release')}, or build it again."
        )
    return chain

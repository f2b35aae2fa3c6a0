"""How a release runs fastest on this machine: `NAME.runtime.json` beside the release folder.

It lies beside the release, not in it: the release is the same everywhere and its files have checksums, while this file
belongs to a machine. It may be deleted at any time. It is used only for the release, the processor and the versions of
the engines that it was measured with, and never for an engine that did not pass the release's gate.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medopt.core.errors import ReleaseError
from medopt.core.files import file_digest, write_text
from medopt.core.provenance import machine, physical_cores
from medopt.inference.engines import Mode
from medopt.inference.runtime import Setting, Tuned
from medopt.release.layout import SUMS, Kind, ReleaseInfo

DEFAULT_BATCH = 8


class Processor(BaseModel):
    """The processor and its cores, for which a measured time holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    cores: int


class Runtime(BaseModel):
    """The file: release, machine and versions that it was measured with, and the settings of each measured model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    release: str
    """SHA-256 of the release's list of checksums, and so of all its files."""
    machine: Processor
    versions: dict[str, str]
    created: str
    models: dict[Kind, Tuned]


def runtime_path(folder: Path) -> Path:
    """Where the settings of a release folder lie."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.runtime.json")


def this_machine() -> Processor:
    """The processor and cores that a measured time holds for."""
    return Processor(cpu=machine().cpu, cores=physical_cores())


def engine_versions() -> dict[str, str]:
    """Versions of the installed packages that run a model."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "openvino"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_runtime(folder: Path, kind: Kind, tuned: Tuned) -> Path:
    """Write the settings of one model beside the release; the other model keeps its own while valid."""
    try:
        models = dict(_read(folder).models)
    except (OSError, ReleaseError):
        models = {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    runtime = Runtime(
        release=file_digest(folder / SUMS),
        machine=this_machine(),
        versions=engine_versions(),
        created=now,
        models=models | {kind: tuned},
    )
    path = runtime_path(folder)
    write_text(path, runtime.model_dump_json(indent=2) + "\n")
    return path


def setting_for(folder: Path, info: ReleaseInfo, kind: Kind, mode: Mode) -> tuple[Setting, str]:
    """The setting measured here for this release, else the default; and why a file that exists is not used."""
    engines = info.models[kind].engines
    default = Setting(engine=engines[0], mode=mode, batch=1 if mode == "latency" else DEFAULT_BATCH)
    try:
        tuned = _read(folder).models.get(kind)
    except OSError:
        return default, ""
    except ReleaseError as error:
        return default, str(error)
    if tuned is None:
        return default, ""
    setting = tuned.setting(mode)
    if setting.engine not in engines:
        why = f"{setting.engine} did not pass the gate for the {kind} model"
        return default, _unused(runtime_path(folder), why, folder)
    return setting, ""


def _read(folder: Path) -> Runtime:
    """Raises OSError where there is no file, ReleaseError where it belongs to something else."""
    path = runtime_path(folder)
    text = path.read_bytes()
    try:
        runtime = Runtime.model_validate_json(text)
    except ValidationError:
        raise ReleaseError(_unused(path, "it is damaged or of another version of medopt", folder)) from None
    for measured, here, what in (
        (runtime.release, file_digest(folder / SUMS), "for another release"),
        (runtime.machine, this_machine(), f"on another machine ({runtime.machine.cpu})"),
        (runtime.versions, engine_versions(), "with other versions of the engines"),
    ):
        if measured != here:
            raise ReleaseError(_unused(path, f"it was measured {what}", folder))
    return runtime


def _unused(path: Path, why: str, folder: Path) -> str:
    return f"{path.name} is not used: {why}. Measure again: medopt tune runtime {quote(str(folder))}"

"""How a release runs fastest on this machine: `NAME.runtime.json` beside the release folder.

Beside, not inside: the release is the same everywhere and its files are checksummed; this file belongs to a machine. It
holds no answer and may be deleted at any time. It is used only for the release, the processor and the versions of the
engines that it was measured with, and never for an engine that did not pass the release's gate.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medopt.core.errors import ReleaseError
from medopt.core.files import file_digest, write_text
from medopt.core.provenance import machine, physical_cores
from medopt.inference.engines import Mode
from medopt.inference.runtime import Setting, Tuned
from medopt.release.layout import SUMS, Kind, ReleaseInfo

DEFAULT_BATCH = 8


class Runtime(BaseModel):
    """The file: what it was measured for and on, and the settings of each model that was tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    release: str
    """SHA-256 of the release's list of checksums, and so of all that is in it."""
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str
    models: dict[Kind, Tuned]


def runtime_path(folder: Path) -> Path:
    """Where the settings of a release folder lie."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.runtime.json")


def this_machine() -> dict[str, Any]:
    """What a measured time belongs to."""
    return {"cpu": machine().cpu, "cores": physical_cores()}


def engine_versions() -> dict[str, str]:
    """Versions of the packages that run a model, those that are installed."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "openvino"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_runtime(folder: Path, kind: Kind, tuned: Tuned) -> Path:
    """Keep the settings of one model beside the release; those of the other model stay where they still fit."""
    try:
        models = dict(_read(folder).models)
    except (OSError, ReleaseError):
        models = {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = Runtime(
        release=file_digest(folder / SUMS),
        machine=this_machine(),
        versions=engine_versions(),
        created=now,
        models=models | {kind: tuned},
    )
    path = runtime_path(folder)
    write_text(path, found.model_dump_json(indent=2) + "\n")
    return path


def setting_for(folder: Path, info: ReleaseInfo, kind: Kind, mode: Mode) -> tuple[Setting, str]:
    """The setting measured here for this release, or the plain one; and a note where a file was found but not used."""
    engines = info.models[kind].engines
    plain = Setting(engine=engines[0], mode=mode, batch=1 if mode == "latency" else DEFAULT_BATCH)
    try:
        tuned = _read(folder).models.get(kind)
    except OSError:
        return plain, ""
    except ReleaseError as error:
        return plain, str(error)
    if tuned is None:
        return plain, ""
    found = tuned.setting(mode)
    if found.engine not in engines:
        why = f"{found.engine} did not pass the gate for the {kind} model"
        return plain, _unused(runtime_path(folder), why, folder)
    return found, ""


def _read(folder: Path) -> Runtime:
    """Raises OSError where there is no file, ReleaseError where it belongs to something else."""
    path = runtime_path(folder)
    text = path.read_bytes()
    try:
        found = Runtime.model_validate_json(text)
    except ValidationError:
        raise ReleaseError(_unused(path, "it is damaged or of another version of medopt", folder)) from None
    for told, here, what in (
        (found.release, file_digest(folder / SUMS), "for another release"),
        (found.machine, this_machine(), f"on another machine ({found.machine.get('cpu', 'unknown')})"),
        (found.versions, engine_versions(), "with other versions of the engines"),
    ):
        if told != here:
            raise ReleaseError(_unused(path, f"it was measured {what}", folder))
    return found


def _unused(path: Path, why: str, folder: Path) -> str:
    return f"{path.name} is not used: {why}. Measure again: medopt tune runtime {folder}"

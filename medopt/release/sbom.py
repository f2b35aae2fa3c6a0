"""The packages that a release was built and verified with, as a CycloneDX list (1.6, ECMA-424), and what differs here.

They are what medopt needs to run a release, with all that this needs in turn, as the installed packages say of
themselves. Packages of the extras (server, node) are not among them: no answer depends on them.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medopt import __version__
from medopt.core.errors import ReleaseError, listed
from medopt.core.files import write_json
from medopt.core.run_paths import SBOM

ROOT, PYTHON = "medopt", "CPython"
_NAMESPACE = uuid.UUID("5f0d6a0e-6d0c-5a57-9a3b-0a4c1f1a7c55")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package, and the names of those that it needs."""

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]


class _Component(BaseModel):
    """The part of a component that is compared; others may have written the list."""

    model_config = ConfigDict(frozen=True)

    type: str
    name: str
    version: str = ""


class _Bom(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: Literal["CycloneDX"] = Field(alias="bomFormat")
    components: tuple[_Component, ...] = ()


def runtime_packages(root: str = ROOT) -> list[Package]:
    """The root and everything installed that it needs, without extras, by name."""
    found: dict[str, Package] = {}
    waiting = [root]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            package = _package(name)
        except metadata.PackageNotFoundError:
            continue  # it is optional, or a part of another distribution
        found[name] = package
        waiting += package.needs
    return [found[name] for name in sorted(found)]


def write_sbom(folder: Path, study: str, created: str) -> None:
    """Write the list of the packages here into a release; raises StorageError."""
    packages = runtime_packages()
    references = {package.name: f"pkg:pypi/{package.name}@{package.version}" for package in packages}
    components: list[dict[str, object]] = [_component(package, references[package.name]) for package in packages]
    python = {"type": "platform", "bom-ref": "python", "name": PYTHON, "version": platform.python_version()}
    graph = [
        {
            "ref": references[package.name],
            "dependsOn": sorted(references[name] for name in package.needs if name in references),
        }
        for package in packages
    ]
    release = {"type": "machine-learning-model", "bom-ref": "release", "name": study, "version": created}
    tool = {"type": "application", "name": ROOT, "version": __version__}
    text = "/".join([study, created, *references.values()])
    write_json(
        folder / SBOM,
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, text)}",
            "version": 1,
            "metadata": {
                "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
                "tools": {"components": [tool]},
                "component": release,
            },
            "components": [*components, python],
            "dependencies": [{"ref": "release", "dependsOn": [references[ROOT], "python"]}, *graph],
        },
    )


def runtime_differences(folder: Path) -> list[str] | None:
    """Which packages differ here from those in the list of a release, in words; None where it has no list.

    Raises ReleaseError where the list cannot be read.
    """
    try:
        bom = _Bom.model_validate_json((folder / SBOM).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise ReleaseError(f"{folder / SBOM} is not a CycloneDX list that this medopt can read.") from None
    return list(_differences(bom.components))


def refuse_other_runtime(folder: Path) -> None:
    """Raise ReleaseError where the packages here are not those of the release's list, or where it has none."""
    found = runtime_differences(folder)
    if found is None:
        raise ReleaseError(f"The release {folder} has no {SBOM}, and the trust folder asks for one: build it again.")
    if found:
        raise ReleaseError(
            f"The release {folder} was built and verified with other packages: {listed(found)}. Install those of its "
            f"{SBOM}, or build it again with these."
        )


def _differences(components: Sequence[_Component]) -> Iterator[str]:
    for one in components:
        if one.type == "platform" and one.name == PYTHON:
            here: str | None = platform.python_version()
        elif one.type == "library":
            here = _version(one.name)
        else:
            continue
        if here is None:
            yield f"{one.name} {one.version} is not installed"
        elif here != one.version:
            yield f"{one.name} is {here}, not {one.version}"


def _version(name: str) -> str | None:
    if name == ROOT:
        return __version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Package:
    distribution = metadata.distribution(name)
    licences = distribution.metadata.get_all("License-Expression") or [""]
    needs = tuple(sorted({canonicalize_name(text) for text in _needs(distribution.requires or [])}))
    version = __version__ if name == ROOT else distribution.version
    return Package(name, version, licences[0], needs)


def _needs(requirements: Sequence[str]) -> Iterator[str]:
    """The names of the requirements that hold here without an extra."""
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _component(package: Package, reference: str) -> dict[str, object]:
    found: dict[str, object] = {
        "type": "library", "bom-ref": reference, "name": package.name, "version": package.version, "purl": reference
    }  # fmt: skip
    return found | ({"licenses": [{"expression": package.licence}]} if package.licence else {})

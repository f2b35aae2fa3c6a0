"""The hint for a missing package names an extra that has it, for every requirement of every extra."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from medopt.core.extras import extra_for, missing_package

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS = {name: rows for name, rows in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}


def plain(requirement: str) -> str:
    """A requirement's package, spelled in one way."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", requirement)[0]).lower()


def modules() -> dict[str, set[str]]:
    """What each installed package is imported as, without private and build-time modules."""
    by_package: dict[str, set[str]] = {}
    for module, packages in packages_distributions().items():
        for package in packages:
            by_package.setdefault(plain(package), set()).add(module)
    helpers = {"mpl_toolkits", "pylab"}
    return {package: {name for name in names - helpers if name[0] != "_"} for package, names in by_package.items()}


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_requirement_of_an_extra_is_hinted_at(extra: str) -> None:
    imported_as = modules()
    for package in map(plain, EXTRAS[extra]):
        owners = {name for name, rows in EXTRAS.items() if package in map(plain, rows)}
        if package == "mlflow-skinny":  # a part of mlflow, imported by the same name
            owners |= {name for name, rows in EXTRAS.items() if "mlflow" in map(plain, rows)}
        for module in imported_as[package]:
            assert extra_for(module) in owners, (package, module)
            assert f"'medopt[{extra_for(module)}]'" in missing_package(module)


def test_a_command_names_its_own_extra_where_several_bring_the_package() -> None:
    assert {command: extra_for("uvicorn", command) for command in ("serve", "pacs", "run")} == {
        "serve": "serve",
        "pacs": "pacs",
        "run": "serve",
    }
    assert extra_for("mlflow", "pull") == "registry" and extra_for("mlflow.sklearn", "run") == "train"
    assert extra_for("pynetdicom", "serve") == "pacs"


def test_what_every_installation_has_is_in_no_extra() -> None:
    imported_as = modules()
    for package in map(plain, PROJECT["dependencies"]):
        for module in imported_as[package]:
            assert extra_for(module) is None, module
            assert missing_package(module).endswith("pip install --force-reinstall medopt.")

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from inspect import isclass, ismodule
from operator import attrgetter
from pathlib import Path

import pytest

import medopt

pytestmark = pytest.mark.system
ROOT = Path(medopt.__file__).parents[1]

SNAPSHOT = """
import logging, os, sys, time, warnings
import pydicom, pydicom.config

def snapshot():
    loggers = {name: (log.level, list(log.handlers), log.propagate, log.disabled)
               for name, log in logging.root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    return {
        "the environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "pydicom": {k: v for k, v in vars(pydicom.config).items() if not callable(v)} | vars(pydicom.config.settings),
        "loggers": loggers | {"": (logging.root.level, list(logging.root.handlers), True, False)},
        "barred modules": {name for name, module in sys.modules.items() if module is None},
    }

def changed(before, after):
    if isinstance(before, dict):
        return {key: (before.get(key), after.get(key)) for key in before if before[key] != after.get(key)} | {
            key: after[key] for key in after.keys() - before.keys() if isinstance(after[key], str)}
    return [item for item in after if item not in before]
"""

IMPORT = (
    SNAPSHOT
    + """
modules, before, began = set(sys.modules), snapshot(), time.process_time()
import medopt
taken, after = time.process_time() - began, snapshot()
assert set(sys.modules) - modules == {"medopt"}, set(sys.modules) - modules
assert before == after, {what: changed(before[what], after[what]) for what in before}
assert taken < 0.2, taken
assert "read_scan" in dir(medopt) and "read_scan" not in vars(medopt)
assert medopt.read_scan and "read_scan" in vars(medopt)
assert "torch" not in sys.modules and "monai" not in sys.modules  # reading a scan needs neither
"""
)

IMPORT_ALL = (
    SNAPSHOT
    + """
# What other packages do when they are imported is theirs.
import alembic.runtime.migration, grpc, highdicom, lightning_fabric, matplotlib.pyplot, mlflow, monai, nncf, openvino
import optuna, pynetdicom, torch.onnx, uvicorn
import importlib, pkgutil
before = snapshot()
import medopt
for module in pkgutil.walk_packages(medopt.__path__, "medopt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = snapshot()
after["the environment"].pop("GRPC_VERBOSITY", None)  # by medopt.serving.server.run: gRPC reads it when it is imported
after["the environment"].pop("MLFLOW_DISABLE_TELEMETRY")  # by medopt.tracking: the processes of MLflow read it
difference = {what: changed(before[what], after[what]) for what in before}
assert not any(difference.values()), difference
"""
)


def in_a_process(program: str) -> None:
    surroundings = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_medopt_is_quick_and_changes_nothing() -> None:
    in_a_process(IMPORT)


def test_importing_any_module_changes_no_settings_of_others() -> None:
    in_a_process(IMPORT_ALL)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'medopt' has no attribute 'read_scans'"):
        medopt.read_scans  # type: ignore[attr-defined] # noqa: B018


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    in_a_process("""
import sys
sys.modules["lightning_fabric"] = None
import medopt
try:
    medopt.run
except ModuleNotFoundError as error:
    assert error.__notes__ == ["medopt.run needs lightning_fabric: pip install 'medopt[train]'"], error.__notes__
else:
    raise AssertionError("it was imported")
""")


def test_the_version_stands_in_one_place_and_the_types_are_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"] and settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "medopt.__version__"}
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["medopt"]
    assert (ROOT / "medopt/py.typed").is_file()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all examples share, so that the study is drawn once."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", ["medopt", "metrics.evaluate", *medopt.__all__])
def test_every_public_name_is_documented_with_an_example_that_runs(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    thing = medopt if name == "medopt" else attrgetter(name)(medopt)
    assert (thing.__doc__ or "").strip()
    home = thing if ismodule(thing) else import_module(thing.__module__)
    tests = doctest.DocTestFinder(recurse=isclass(thing)).find(thing, name, home, {**vars(home), "medopt": medopt})
    assert any(test.examples for test in tests), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    told: list[str] = []
    for test in tests:
        runner.run(test, out=told.append)
    assert not runner.failures, "".join(told)

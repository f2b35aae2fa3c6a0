"""A release as an MLflow model: `mlflow.pyfunc.load_model` and `mlflow models serve` answer scans with it.

The version holds the whole release folder, both models and the chain, and medopt's own code beside it, so that nothing
but the logged requirements has to be installed. Logged as code (no pickle).
"""

from __future__ import annotations

import logging
import re
import tempfile
import tomllib
from collections.abc import Mapping
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import medopt
from medopt.core.errors import ConfigError, DataError
from medopt.imaging.redact import redacted
from medopt.release.layout import ReleaseInfo, read_info, refuse_channels
from medopt.release.predictor import Answer, Release
from medopt.serving.prediction_table import MISSING, NUMBERS
from medopt.serving.server.decode_scan import prepare_bytes
from medopt.serving.server.limits import ServerLimits

NAME, ARTIFACT = "release", "release"
CODE = """from medopt.tracking.release import ReleaseModel
from mlflow.models import set_model

set_model(ReleaseModel())
"""


class ReleaseModel(PythonModel):
    """Rows of scans in, rows of answers out. A scan that cannot be read or is declined has its reason instead."""

    def load_context(self, context: Any) -> None:
        """Open both models of the release.

        Raises ReleaseError where a byte changed, the chain is another, or a case has several images.
        """
        folder = Path(context.artifacts[ARTIFACT])
        info = read_info(folder)
        refuse_channels(info, "a row of an MLflow model is one scan")
        self._opened = {kind: Release.open(folder, kind) for kind in info.models}

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row a scan: `scan`, the bytes of a DICOM, NIfTI or image file or of a zip of a series; or `path`.

        Covariates of the release stand in columns of their names.
        """
        predictor = self._chosen((params or {}).get("model") or "int8")
        rows = [_row(predictor, row) for row in model_input.to_dict("records")]
        return pd.DataFrame(rows, dtype=object)  # a number that is not there is None: JSON knows no NaN

    def _chosen(self, kind: object) -> Release:
        chosen = next((release for name, release in self._opened.items() if name == kind), None)
        if chosen is None:
            has = " and ".join(sorted(self._opened))
            raise ConfigError(f"The parameter `model` is {kind!r}; this release has {has}.")
        return chosen


def _row(predictor: Release, asked: Mapping[Any, Any]) -> dict[str, Any]:
    labels = predictor.info.labels
    columns = [*(f"probability_{label}" for label in labels), *(NUMBERS if predictor.info.number else ())]
    found: dict[str, Any] = {"decision": ""} | dict.fromkeys(columns)
    missing = {MISSING: ""} if predictor.info.covariates else {}
    try:
        answer = _answer(predictor, asked)
    except DataError as error:
        return found | {"declined": "", "refused": str(error), "why": str(error)} | missing
    if not answer.declined:
        found = {"decision": answer.decision}
        found |= {f"probability_{label}": answer.probabilities[label] for label in labels}
        if number := answer.number:
            found |= dict(zip(NUMBERS, (number.value, number.low, number.high), strict=True))
    why = answer.declined or ""
    missing = {MISSING: ";".join(answer.missing)} if predictor.info.covariates else {}
    return found | {"declined": why, "refused": "", "why": why} | missing


def _answer(predictor: Release, asked: Mapping[Any, Any]) -> Answer:
    data, path = asked.get("scan"), asked.get("path")
    given = {one.column: asked.get(one.column) for one in predictor.info.covariates}
    if isinstance(data, bytes | bytearray | memoryview) and len(data):
        case = prepare_bytes(predictor, bytes(data), ServerLimits(), given)
        return predictor.predict_batch(case.image[None], [case.acquisition], [case.cells])[0]
    if isinstance(path, str) and path:
        try:
            return predictor.predict(path, given)
        except DataError as error:  # the answer leaves this machine
            raise DataError(redacted(str(error), Path(path))) from None
    raise DataError("A row takes `scan`, the bytes of a file or of a zip, or `path`, the place of one.")


def log_release(release: Path, client: MlflowClient, run_id: str) -> str:
    """Log a release with a run, and register it under its study's name; returns the version.

    The example among the files is a golden case: drawn, never a patient's.
    """
    info = read_info(release)
    for name in ("mlflow.pyfunc", "mlflow.models"):
        logging.getLogger(name).setLevel(logging.ERROR)
    run = client.get_run(run_id)
    # MLflow's own pyfunc.log_model would make the model in the experiment that the environment names.
    model = client.create_logged_model(run.info.experiment_id, NAME, run_id, params=run.data.params)
    with tempfile.TemporaryDirectory() as place:
        code = Path(place) / "release_model.py"
        code.write_text(CODE)
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            python_model=str(code),
            artifacts={ARTIFACT: str(release)},
            code_paths=[str(Path(medopt.__file__).parent)],
            signature=signature_of(info),
            pip_requirements=requirements(),
            registered_model_name=info.study,
            input_example=pd.DataFrame({"scan": [example(release)]}),
        )
    return str(logged.registered_model_version)


def signature_of(info: ReleaseInfo) -> ModelSignature:
    """Named inputs, the labels among the outputs, and which of the two models answers."""
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "scan", required=False),
        ColSpec(DataType.string, "path", required=False),
        *(ColSpec(DataType.string, one.column, required=False) for one in info.covariates),
    ]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "decision")]
    numbers = [*(f"probability_{label}" for label in info.labels), *(NUMBERS if info.number else ())]
    outputs += [ColSpec(DataType.double, name, required=False) for name in numbers]
    texts = ("declined", "refused", "why", *((MISSING,) if info.covariates else ()))
    outputs += [ColSpec(DataType.string, name) for name in texts]
    return ModelSignature(
        inputs=Schema(inputs),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("model", DataType.string, "int8")]),
    )


def requirements() -> list[str]:
    """What medopt needs to serve, pinned to what is installed here, and MLflow itself."""
    names = [found.group() for text in _dependencies() if (found := re.match(r"[A-Za-z0-9_.-]+", text))]
    return [f"{name}=={version(name).partition('+')[0]}" for name in (*names, "mlflow", "pandas")]


def _dependencies() -> list[str]:
    """Those of the code that runs: a checkout may be newer than what was written down when it was installed."""
    checkout = Path(medopt.__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(checkout.read_text()).get("project", {}) if checkout.is_file() else {}
    if project.get("name") == "medopt":
        return list(project["dependencies"])
    return [text for text in requires("medopt") or [] if "extra ==" not in text]


def example(release: Path) -> bytes:
    """A golden case as a file holds it; those are drawn."""
    return sorted((release / "golden").iterdir())[0].read_bytes()

"""A release as an MLflow model: `mlflow.pyfunc.load_model` and `mlflow models serve` answer scans with it.

The version holds the whole release folder, both models and the chain, and medopt's own code beside it, so that nothing
but the logged requirements has to be installed. Logged as code (no pickle).
"""

from __future__ import annotations

import logging
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
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
from medopt.release.golden import first_case
from medopt.release.layout import ReleaseInfo, read_info
from medopt.release.predictor import Answer, Release
from medopt.serving.prediction_table import MISSING, NUMBERS
from medopt.serving.server.decode_scan import prepare_bytes
from medopt.serving.server.limits import ServerLimits

NAME, ARTIFACT = "release", "release"
SCAN, PATH = "scan", "path"
"""Columns of a row: the bytes of a scan, or the place of its file."""
CODE = """from medopt.tracking.release import ReleaseModel
from mlflow.models import set_model

set_model(ReleaseModel())
"""


class ReleaseModel(PythonModel):
    """Rows of scans in, rows of answers out. A scan that cannot be read or is declined has its reason instead."""

    def load_context(self, context: Any) -> None:
        """Open both models of the release.

        Raises ReleaseError where a byte changed or the chain is another.
        """
        folder = Path(context.artifacts[ARTIFACT])
        self._opened = {kind: Release.open(folder, kind) for kind in read_info(folder).models}

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row a scan: `scan`, the bytes of a DICOM, NIfTI or image file or of a zip of a series; or `path`.

        Of a case of several images a column for each, as in `scan:t1` or `path:t1`. Covariates of the release stand in
        columns of their names.
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


def _row(predictor: Release, row: Mapping[Any, Any]) -> dict[str, Any]:
    labels = predictor.info.labels
    columns = [*(f"probability_{label}" for label in labels), *(NUMBERS if predictor.info.number else ())]
    cells: dict[str, Any] = {"decision": ""} | dict.fromkeys(columns)
    missing = {MISSING: ""} if predictor.info.covariates else {}
    try:
        answer = _answer(predictor, row)
    except DataError as error:
        return cells | {"declined": "", "refused": str(error), "why": str(error)} | missing
    if not answer.declined:
        cells = {"decision": answer.decision}
        cells |= {f"probability_{label}": answer.probabilities[label] for label in labels}
        if number := answer.number:
            cells |= dict(zip(NUMBERS, (number.value, number.low, number.high), strict=True))
    why = answer.declined or ""
    missing = {MISSING: ";".join(answer.missing)} if predictor.info.covariates else {}
    return cells | {"declined": why, "refused": "", "why": why} | missing


def _answer(predictor: Release, row: Mapping[Any, Any]) -> Answer:
    names = predictor.info.prepare.channel_names
    given = {one.column: row.get(one.column) for one in predictor.info.covariates}
    data = tuple(_bytes(row.get(column)) for column in input_columns(SCAN, names))
    paths = tuple(_text(row.get(column)) for column in input_columns(PATH, names))
    if any(data):
        case = prepare_bytes(predictor, data if names else data[0], ServerLimits(), given)
        return predictor.predict_batch(case.image[None], [case.acquisition], [case.cells])[0]
    if any(paths):
        try:
            return predictor.predict(paths if names else paths[0], given)
        except DataError as error:  # the answer leaves this machine
            text = str(error)
            for path in filter(None, paths):
                text = redacted(text, Path(path))
            raise DataError(text) from None
    raise DataError(
        f"A row takes {_named(SCAN, names)}, the bytes of a file or of a zip, or {_named(PATH, names)}, the place of "
        "one."
    )


def input_columns(kind: str, names: Sequence[str]) -> list[str]:
    """The columns of a row that hold the images of a case: SCAN or PATH, or with named channels one for each."""
    return [f"{kind}:{name}" for name in names] or [kind]


def _named(kind: str, names: Sequence[str]) -> str:
    return " and ".join(f"`{column}`" for column in input_columns(kind, names))


def _bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


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
            input_example=pd.DataFrame({column: [data] for column, data in example(release, info).items()}),
        )
    return str(logged.registered_model_version)


def signature_of(info: ReleaseInfo) -> ModelSignature:
    """Named inputs, the labels among the outputs, and which of the two models answers."""
    inputs: list[ColSpec | TensorSpec] = [
        *(
            ColSpec(kind, column, required=False)
            for kind, name in ((DataType.binary, SCAN), (DataType.string, PATH))
            for column in input_columns(name, info.prepare.channel_names)
        ),
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


def example(release: Path, info: ReleaseInfo) -> dict[str, bytes]:
    """The input of a golden case, by column, as files hold it; those cases are drawn."""
    names = info.prepare.channel_names
    files = first_case(release, names)
    return {column: file.read_bytes() for column, file in zip(input_columns(SCAN, names), files, strict=True)}

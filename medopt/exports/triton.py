"""A Triton model repository: `NAME/config.pbtxt`, `NAME/1/model.onnx`, labels, and what the logits mean.

Served by Triton's ONNX Runtime backend where that engine passed the release's gate, else by its OpenVINO backend; on
the CPU in both cases, since that is where the gate looked. Source of the fields: Triton's model_config.proto.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnxruntime

from medopt.core.errors import ReleaseError
from medopt.core.files import write_text
from medopt.exports.folder import ExportSource, compare, whole_folder, write_facts
from medopt.exports.pbtxt import Word, dump, parse
from medopt.inference.engines import FEATURES, INPUT, OUTPUT, open_engine
from medopt.release.layout import Kind

LABELS = "labels.txt"
BACKENDS = ("onnxruntime", "openvino")
MAX_BATCH, PREFERRED, WAIT_MICROSECONDS = 16, [4, 8, 16], 2000


def export_triton(source: ExportSource, target: Path, kind: Kind | None = None) -> dict[str, Any]:
    """Write the repository to `target` and return what was checked: file, backend, largest logit difference.

    `kind` None takes int8 where it may run in one of Triton's engines, else float. Raises ReleaseError.
    """
    kind, engine = _which(source, kind)
    name = model_name(source.info.study)
    with whole_folder(target) as part:
        model = part / name / "1" / "model.onnx"
        model.parent.mkdir(parents=True)
        shutil.copyfile(source.model(kind), model)
        config = configuration(source, model, name, engine)
        write_text(part / name / "config.pbtxt", dump(config))
        write_text(part / name / LABELS, "".join(f"{label}\n" for label in _output_labels(source)))
        reader = read_back_config(part / name / "config.pbtxt", config)
        found = open_engine(engine, model, 1).run(source.golden)
        difference = compare(f"{name}/1/model.onnx", found, source.answers(kind, engine)[0])
        checked = {"config": reader, "tool": engine, "largest_logit_difference": {kind: difference}}
        write_facts(part, source, {kind: f"{name}/1/model.onnx"}, checked)
    return {"model": kind, "name": name, "backend": engine} | checked


def _which(source: ExportSource, kind: Kind | None) -> tuple[Kind, str]:
    wanted: tuple[Kind, ...] = (kind,) if kind else ("int8", "float")
    for one in wanted:
        for engine in BACKENDS:
            if one in source.passed(engine):
                return one, engine
    raise ReleaseError(f"No engine of Triton's passed the gate for the {' or '.join(wanted)} model of this release.")


def model_name(study: str) -> str:
    """A study's name as Triton takes it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", study)


def _output_labels(source: ExportSource) -> list[str]:
    """A label for each logit: a binary study has one, that of the finding."""
    info = source.info
    return info.labels[1:] if info.task == "binary" else info.labels


def configuration(source: ExportSource, model: Path, name: str, engine: str) -> dict[str, Any]:
    """`config.pbtxt` as a message. Batches form by themselves from requests that come within two milliseconds."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    outputs = {one.name: one.shape[1:] for one in session.get_outputs()}
    prepare = source.info.prepare

    def tensor(key: str, shape: list[int]) -> dict[str, Any]:
        return {"name": key, "data_type": Word("TYPE_FP32"), "dims": list(shape)}

    return {
        "name": name,
        "backend": engine,
        "default_model_filename": "model.onnx",
        "max_batch_size": MAX_BATCH,
        "input": [tensor(INPUT, [prepare.channels, *prepare.size])],
        "output": [
            tensor(key, outputs[key]) | ({"label_filename": LABELS} if key == OUTPUT else {})
            for key in (OUTPUT, FEATURES)
            if key in outputs
        ],
        "dynamic_batching": {
            "preferred_batch_size": PREFERRED,
            "max_queue_delay_microseconds": WAIT_MICROSECONDS,
        },
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": [
            {"key": "medopt_chain", "value": {"string_value": source.info.chain_fingerprint}},
        ],
    }


def read_back_config(path: Path, config: dict[str, Any]) -> str:
    """Read the file with Triton's own schema where tritonclient is installed, else with medopt's reader.

    Returns which. Raises ReleaseError where it does not say what was meant.
    """
    text = path.read_text(encoding="utf-8")
    try:
        if parse(text) != _plain(config):
            raise ValueError("fields differ")
    except ValueError as error:
        raise ReleaseError(f"{path.name} does not read back as it was meant ({error}); not exported.") from None
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        return "medopt's reader of the text form (tritonclient, which has Triton's schema, is not installed)"
    try:
        found = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ReleaseError(f"{path.name} is no configuration of Triton's ({error}); not exported.") from None
    if found.name != config["name"] or list(found.input[0].dims) != config["input"][0]["dims"]:
        raise ReleaseError(f"{path.name} says something else to Triton than was meant; not exported.")
    return "tritonclient's ModelConfig"


def _plain(value: Any) -> Any:
    """A message as `parse` gives it: a list of one is the one."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return _plain(value[0]) if len(value) == 1 else [_plain(one) for one in value]
    return value

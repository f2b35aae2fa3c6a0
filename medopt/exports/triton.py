"""A Triton model repository: `NAME/config.pbtxt`, `NAME/1/model.onnx`, labels, and what the logits mean.

Served by Triton's ONNX Runtime backend where that engine passed the release's gate, else by its OpenVINO backend; on
the CPU in both cases, since the gate measured there. Source of the fields: Triton's model_config.proto.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from medopt.core.errors import ReleaseError
from medopt.core.files import write_text
from medopt.core.records import has_one_output
from medopt.exports.folder import ExportResult, ExportSource, compare, whole_folder, write_facts
from medopt.inference.engines import FEATURES, INPUT, OUTPUT, open_engine
from medopt.release.layout import Kind

LABELS = "labels.txt"
BACKENDS = ("onnxruntime", "openvino")
MAX_BATCH, PREFERRED, WAIT_MICROSECONDS = 16, [4, 8, 16], 2000


def export_triton(source: ExportSource, target: Path, kind: Kind | None = None) -> ExportResult:
    """Write the repository to `target`.

    `kind` None takes int8 where it may run in one of Triton's engines, else float. Raises ReleaseError.
    """
    kind, engine = _which(source, kind)
    name = model_name(source.info.study)
    with whole_folder(target) as part:
        model = part / name / "1" / "model.onnx"
        model.parent.mkdir(parents=True)
        shutil.copyfile(source.model(kind), model)
        write_text(part / name / "config.pbtxt", text_form(configuration(source, model, name, engine)))
        write_text(part / name / LABELS, "".join(f"{label}\n" for label in _output_labels(source)))
        logits = open_engine(engine, model, 1).run(source.golden)
        difference = compare(f"{name}/1/model.onnx", logits, source.answers(kind, engine)[0])
        result = ExportResult({kind: difference}, engine, model=kind, name=name, backend=engine)
        write_facts(part, source, {kind: f"{name}/1/model.onnx"}, result)
    return result


def _which(source: ExportSource, kind: Kind | None) -> tuple[Kind, str]:
    kinds: tuple[Kind, ...] = (kind,) if kind else ("int8", "float")
    for candidate in kinds:
        for engine in BACKENDS:
            if candidate in source.passed(engine):
                return candidate, engine
    raise ReleaseError(f"No engine of Triton's passed the gate for the {' or '.join(kinds)} model of this release.")


def model_name(study: str) -> str:
    """A study's name as Triton takes it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", study)


def _output_labels(source: ExportSource) -> list[str]:
    """A label for each logit: a binary study has one, that of the finding."""
    info = source.info
    return info.labels[1:] if has_one_output(info.task) else info.labels


def configuration(source: ExportSource, model: Path, name: str, engine: str) -> dict[str, Any]:
    """`config.pbtxt` as a message. Batches form by themselves from requests that come within two milliseconds."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    outputs = {output.name: output.shape[1:] for output in session.get_outputs()}
    prepare = source.info.prepare

    def tensor(key: str, shape: list[int]) -> dict[str, Any]:
        return {"name": key, "data_type": _Word("TYPE_FP32"), "dims": list(shape)}

    return {
        "name": name,
        "backend": engine,
        "default_model_filename": "model.onnx",
        "max_batch_size": MAX_BATCH,
        "input": [tensor(INPUT, [prepare.input_channels, *prepare.size])],
        "output": [
            tensor(key, outputs[key]) | ({"label_filename": LABELS} if key == OUTPUT else {})
            for key in (OUTPUT, FEATURES)
            if key in outputs
        ],
        "dynamic_batching": {
            "preferred_batch_size": PREFERRED,
            "max_queue_delay_microseconds": WAIT_MICROSECONDS,
        },
        "instance_group": [{"count": 1, "kind": _Word("KIND_CPU")}],
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": [
            {"key": "medopt_chain", "value": {"string_value": source.info.chain_fingerprint}},
        ],
    }


class _Word(str):
    """A name of an enumeration, which Protocol Buffers' text form has without quotes."""

    __slots__ = ()


def text_form(message: Mapping[str, Any], indent: int = 0) -> str:
    """A message in Protocol Buffers' text form: mappings are messages, lists are repeated fields."""
    lines = []
    for key, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            lines.append(" " * indent + _field(key, item, indent))
    return "".join(lines)


def _field(key: str, value: Any, indent: int) -> str:
    if isinstance(value, Mapping):
        return f"{key} {{\n{text_form(value, indent + 2)}{' ' * indent}}}\n"
    if isinstance(value, str) and not isinstance(value, _Word):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{key}: "{quoted}"\n'
    return f"{key}: {value}\n"

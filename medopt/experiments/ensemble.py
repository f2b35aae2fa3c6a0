"""A release of several members at once: one ONNX file that averages their logits, judged and tested like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import compose, helper

from medopt.core.files import atomic, file_digest
from medopt.core.records import KINDS
from medopt.core.reporter import Reporter
from medopt.experiments.run_group import RunGroup
from medopt.inference.engines import FEATURES, INPUT, OUTPUT
from medopt.pipeline.judge import FLOAT, QUANTIZED
from medopt.pipeline.runner import opened_run, outcome_of
from medopt.pipeline.study_cases import StudyCases

MERGED = {"float": FLOAT, "int8": QUANTIZED}


def build_ensemble(
    source: StudyCases, members: Sequence[Path], group: RunGroup, runs: Path, reporter: Reporter
) -> dict[str, Any]:
    """Merge the members' models and take the ensemble through the gate, the test and the release; its summary.

    `members` are run folders. Temperature and operating point are chosen on the validation split that all of them
    share. It stands in the group's folder, and as a run below the group's in MLflow.
    """
    files = {kind: [folder / "models" / f"{kind}.onnx" for folder in members] for kind in KINDS}
    inputs: dict[str, list[str]] = {kind: [file_digest(path) for path in paths] for kind, paths in files.items()}

    def merge(models: Path) -> None:
        for kind, paths in files.items():
            merge_mean(paths, models / MERGED[kind])

    place = group.folder.path / "ensemble"
    with opened_run(source, runs, reporter, parent=group.parent.run_id, place=place) as run:
        summary = run.ensemble(runs, members, inputs, merge)
        run.end(outcome_of(summary))
        return summary


def merge_mean(paths: Sequence[Path], target: Path) -> None:
    """Write one model that gives the mean of the logits of several, all of which see the same image.

    Its features are theirs, one after the other; where one of them has none, it has none either.
    """
    parts = [compose.add_prefix(onnx.load(path), f"member{n}_", rename_inputs=False) for n, path in enumerate(paths)]
    logits, features = (
        [one for n, part in enumerate(parts) for one in part.graph.output if one.name == f"member{n}_{name}"]
        for name in (OUTPUT, FEATURES)
    )
    joining = [helper.make_node("Mean", [one.name for one in logits], [OUTPUT], "mean")]
    answers = [_renamed(logits[0], OUTPUT)]
    if len(features) == len(parts):
        joining.append(helper.make_node("Concat", [one.name for one in features], [FEATURES], "concatenate", axis=1))
        answers.append(
            _renamed(features[0], FEATURES, sum(one.type.tensor_type.shape.dim[1].dim_value for one in features))
        )
    graph = helper.make_graph(
        [node for part in parts for node in part.graph.node] + joining,
        "ensemble",
        [next(one for one in parts[0].graph.input if one.name == INPUT)],
        answers,
        [item for part in parts for item in part.graph.initializer],
        value_info=[item for part in parts for item in part.graph.value_info],
    )
    functions = [item for part in parts for item in part.functions]
    model = helper.make_model(graph, opset_imports=list(parts[0].opset_import), functions=functions)
    model.ir_version = parts[0].ir_version
    with atomic(target) as part:
        onnx.save(model, part)


def _renamed(output: onnx.ValueInfoProto, name: str, width: int | None = None) -> onnx.ValueInfoProto:
    """The description of an output under another name, and with another number of columns where given."""
    found = onnx.ValueInfoProto()
    found.CopyFrom(output)
    found.name = name
    if width is not None:
        found.type.tensor_type.shape.dim[1].dim_value = width
    return found

"""A release of several members at once: one ONNX file that averages their logits, judged and tested like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import compose, helper

from medopt.inference.engines import INPUT, OUTPUT
from medopt.pipeline.group import Group
from medopt.pipeline.runner import ensemble_study
from medopt.pipeline.source import Source
from medopt.pipeline.stages import KINDS
from medopt.provenance import atomic, file_digest
from medopt.records import Reporter


def build_ensemble(
    source: Source, members: Sequence[Path], group: Group, runs: Path, reporter: Reporter
) -> dict[str, Any]:
    """Merge the members' models and take the ensemble through the gate, the test and the release; its summary.

    `members` are run folders. Temperature and operating point are chosen on the validation split that all of them
    share. It stands in the group's folder, and as a run below the group's in MLflow.
    """
    files = {kind: [folder / "models" / f"{kind}.onnx" for folder in members] for kind in KINDS}
    inputs = {kind: [file_digest(path) for path in paths] for kind, paths in files.items()}

    def merge(models: Path) -> None:
        for kind, paths in files.items():
            merge_mean(paths, models / f"{kind}.onnx")

    place = group.folder.path / "ensemble"
    return ensemble_study(source, members, inputs, merge, place, runs, reporter, group.parent.run_id)


def merge_mean(paths: Sequence[Path], target: Path) -> None:
    """Write one model that gives the mean of the logits of several, all of which see the same image."""
    parts = [compose.add_prefix(onnx.load(path), f"member{n}_", rename_inputs=False) for n, path in enumerate(paths)]
    outputs = [part.graph.output[0].name for part in parts]
    answer = onnx.ValueInfoProto()
    answer.CopyFrom(parts[0].graph.output[0])
    answer.name = OUTPUT
    graph = helper.make_graph(
        [node for part in parts for node in part.graph.node] + [helper.make_node("Mean", outputs, [OUTPUT], "mean")],
        "ensemble",
        [next(one for one in parts[0].graph.input if one.name == INPUT)],
        [answer],
        [item for part in parts for item in part.graph.initializer],
        value_info=[item for part in parts for item in part.graph.value_info],
    )
    functions = [item for part in parts for item in part.functions]
    model = helper.make_model(graph, opset_imports=list(parts[0].opset_import), functions=functions)
    model.ir_version = parts[0].ir_version
    with atomic(target) as part:
        onnx.save(model, part)

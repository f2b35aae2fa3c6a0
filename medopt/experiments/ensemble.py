"""A release of several members at once: one ONNX file that averages their logits, judged and tested like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import compose, helper

from medopt.core.covariates import CovariateTerms
from medopt.core.files import atomic, file_digest
from medopt.core.records import KINDS, Kind, Override
from medopt.core.reporter import Reporter
from medopt.experiments.run_group import RunGroup
from medopt.inference.engines import FEATURES, INPUT, OUTPUT
from medopt.pipeline.covariate_terms import TERMS
from medopt.pipeline.finished_run import FinishedRun
from medopt.pipeline.run import complete_run, opened_run, stages_of_models
from medopt.pipeline.run_folder import FLOAT, QUANTIZED, RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.pipeline.study_cases import StudyCases

MERGED: dict[Kind, str] = {"float": FLOAT, "int8": QUANTIZED}


@dataclass(frozen=True, slots=True)
class MergedMembers:
    """The run folders of the members, by name."""

    members: tuple[str, ...]


class MergeStage(Stage[MergedMembers]):
    """Merge the members' models into one that averages their logits: what `compress` is to a single network."""

    name = "compress"
    inputs = ("prepare",)
    result_type = MergedMembers

    def __init__(self, members: Sequence[Path], *, covariates: bool = False) -> None:
        self.members, self.covariates = members, covariates

    def files(self, kind: Kind) -> list[Path]:
        """The members' models of a kind."""
        return [folder / "models" / f"{kind}.onnx" for folder in self.members]

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The members' models."""
        models: dict[str, object] = {kind: [file_digest(path) for path in self.files(kind)] for kind in KINDS}
        return models | ({"terms": [file_digest(path) for path in self._terms]} if self.covariates else {})

    @property
    def _terms(self) -> list[Path]:
        return [folder / "models" / TERMS for folder in self.members]

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The merged models, and what covariates add to their logits."""
        return [folder.models / name for name in (*MERGED.values(), *([TERMS] if self.covariates else []))]

    def run(self, context: RunContext) -> MergedMembers:
        """Write them. The mean of the members' logits has the mean of what covariates add to each."""
        if self.covariates:
            terms = CovariateTerms.mean([CovariateTerms.read(path) for path in self._terms])
            terms.write(context.folder.models / TERMS)
        for kind, name in MERGED.items():
            merge_mean(self.files(kind), context.folder.models / name)
        return MergedMembers(tuple(folder.name for folder in self.members))


def build_ensemble(
    cases: StudyCases,
    members: Sequence[Path],
    group: RunGroup,
    runs: Path,
    reporter: Reporter,
    override: Override | None = None,
) -> FinishedRun:
    """Merge the members' models and take the ensemble through the gate, the test and the release.

    `members` are run folders. Temperature and operating point are chosen on the validation split that all of them
    share. It stands in the group's folder, and as a run below the group's in MLflow. `override` releases it although a
    verdict did not pass it; its members keep their verdicts.
    """
    place, parent = group.folder.path / "ensemble", group.parent.run_id
    networks = tuple(RunFolder(folder, False).best_weights for folder in members)
    notes = [f"an ensemble: the mean of the logits of {len(members)} networks, of one seed each"]
    with opened_run(
        cases, runs, reporter, parent=parent, place=place, networks=networks, notes=notes, override=override
    ) as run:
        merge = MergeStage(members, covariates=bool(run.study.data.covariates))
        return complete_run(run, [PrepareStage(), merge, *stages_of_models(run.study)])


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

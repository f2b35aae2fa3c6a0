"""`medopt export`: a release in the form that another server reads."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, Model, RegistryOption, ReleaseArgument
from medopt.cli.places import release_folder, run_folder

if TYPE_CHECKING:
    from torch import nn

    from medopt.exports.folder import ExportResult, ExportSource
    from medopt.release.layout import Kind


class Format(StrEnum):
    """What can be written."""

    triton = "triton"
    openvino = "openvino"
    monai = "monai"
    kserve = "kserve"


def export(
    release: ReleaseArgument,
    form: Annotated[Format, typer.Option("--format", help="What to write.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    model: Annotated[
        Model | None,
        typer.Option("--model", help="Else int8 for triton and kserve, both for openvino, float for monai."),
    ] = None,
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write a release as a Triton model repository, OpenVINO's IR, a MONAI bundle, or a service for Kubernetes.

    triton: NAME/config.pbtxt with dynamic batching, NAME/1/model.onnx and labels; serve it with
    tritonserver --model-repository=OUT.

    openvino: model.int8.xml and model.float.xml with their weights, for OpenVINO's runtime and Model Server.

    monai: configs/inference.json with the release's own preparation chain, metadata.json, models/. Given a RUN folder,
    the float network goes along as models/model.pt2 (torch.export, no pickle); a release alone holds ONNX only.

    kserve: inferenceservice.yaml for KServe, a Dockerfile, and the release; it runs medopt serve, which declines scans
    and reads files as medopt predict does. What follows is about the other three.

    Each is written whole or not at all, read back with its own tool and compared with the release on its golden cases;
    the largest difference of a logit is said. A model is written only for engines that passed its gate. medopt.json
    beside it says how logits become probabilities and decisions (labels, calibration, threshold), how scans are
    prepared, and the hash of every file. What no other server does: decline scans unlike those of training.

    Example: medopt export runs/busi --format triton --out models
    """
    folder = release_folder(release, runs)
    from medopt.exports.folder import ExportSource

    run = None if folder == release else run_folder(folder)
    result = _write(ExportSource.read(folder), form, out, model, run)
    for kind, difference in result.largest_logit_difference.items():
        text = f"read back with {result.tool}: a logit of the golden cases differs by at most {difference:.2g}"
        typer.echo(f"{kind:<6} {text}")
    for kind in result.not_exported or ():
        typer.echo(f"{kind:<6} left out: the engine did not pass the release's gate for it")
    note = f"{out}/inferenceservice.yaml begins with the steps to take"
    if form != Format.kserve:
        note = "medopt.json there says how logits become decisions"
    typer.echo(f"written to {out}; {note}")
    facts = {key: value for key, value in asdict(result).items() if value is not None}
    print_json(as_json, {"release": str(folder), "format": form, "out": str(out)} | facts)


def _write(source: ExportSource, form: Format, out: Path, model: Kind | None, run: Path | None) -> ExportResult:
    if form == Format.triton:
        from medopt.exports.triton import export_triton

        return export_triton(source, out, model)
    if form == Format.openvino:
        from medopt.exports.openvino_ir import export_openvino

        return export_openvino(source, out, model)
    if form == Format.kserve:
        from medopt.exports.kubernetes import export_kserve

        return export_kserve(source, out, model)
    from medopt.exports.monai_bundle import export_monai

    return export_monai(source, out, model, _network(run) if run and model != "int8" else None)


def _network(run: Path) -> nn.Module | None:
    """The float network of a run; None for an ensemble, which is no network of one checkpoint."""
    from medopt.config.study_file import load_study
    from medopt.training.job import BEST
    from medopt.training.loop import load_best

    weights = run / "checkpoints" / BEST
    return load_best(load_study(run / "study.yaml"), weights) if weights.exists() else None

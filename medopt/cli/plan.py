"""`medopt plan`: a study file for a manifest, each choice with its reason."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption, RenameOption, renaming
from medopt.cli.places import with_first_image
from medopt.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medopt.config import Study


def plan(
    manifest: Annotated[Path, typer.Argument(help="A manifest CSV.")],
    out: Annotated[Path, typer.Option("--out", metavar="STUDY.yaml", help="The study file to write.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder that the manifest's image paths start from; else it is looked for."),
    ] = None,
    modality: Annotated[
        str, typer.Option("--modality", help="CT, MR, US, DX ...: for scans that do not say it (PNG, NIfTI).")
    ] = "",
    positive: Annotated[
        str,
        typer.Option("--positive", metavar="LABEL", help="Which of two labels is the finding; else its name says it."),
    ] = "",
    number: Annotated[
        str,
        typer.Option(
            "--number", metavar="COLUMN", help="Predict the number in this column; else the labels decide the task."
        ),
    ] = "",
    ordered: Annotated[
        str,
        typer.Option("--ordered", metavar="GRADE,...", help="The labels are grades; name them all, the lowest first."),
    ] = "",
    rename: RenameOption = "",
    name: Annotated[str, typer.Option("--name", help="Name of the study; else that of the manifest.")] = "",
    question: Annotated[str, typer.Option("--question", help="What the study asks of a scan, for its report.")] = "",
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option("--device", help="What will train: cuda plans for a GPU of 16 GB where this machine has none."),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Look at a manifest's scans and write a study file for them that runs as it is.

    Sizes, spacings, intensities, colours, classes and their number decide, and this machine's memory; each choice
    stands there with its reason. A measured step tells how long training will take here.

    Example: medopt plan manifest.csv --data images --out lesions.yaml && medopt run lesions.yaml
    """
    from rich.table import Table

    from medopt.cli.console import plain_console, print_shortcuts
    from medopt.config import Prepare
    from medopt.evaluation.shortcuts import read_shortcuts
    from medopt.manifest.infer_study import infer_study, with_finding
    from medopt.manifest.table import read_manifest
    from medopt.pipeline.start import with_start
    from medopt.planning.decide import decide
    from medopt.planning.duration import duration_notes
    from medopt.planning.fingerprint import SAMPLE, take_fingerprint
    from medopt.planning.size import tile_notes
    from medopt.planning.write import describe_fingerprint, write_plan

    grades = [grade.strip() for grade in ordered.split(",") if grade.strip()]
    guessed = with_finding(infer_study(manifest, renaming(rename), number, grades), positive)
    guessed = _named(guessed, name, question)
    cases = read_manifest(manifest, guessed)
    folder = _folder(manifest, guessed, data)
    with reporting() as reporter:
        labels, task, started = guessed.data.labels, guessed.data.task, time.perf_counter()
        fingerprint = take_fingerprint(cases, labels, task, folder, reporter, guessed.prepare)
        read_seconds = time.perf_counter() - started
        shortcuts = read_shortcuts(cases, folder, guessed, reporter, SAMPLE)
    trains = _device(device)
    decided = decide(fingerprint, trains, modality.upper(), _memory(trains))
    prepare = {one.key.partition(".")[2]: one.value for one in decided if one.key.startswith("prepare.")}
    decisions = with_start(decided, fingerprint.dims, Prepare.model_validate(prepare).input_channels)
    plan = (out, manifest, folder.resolve(), guessed, fingerprint, decisions)
    first = write_plan(*plan)
    notes = duration_notes(first, fingerprint, trains, read_seconds) + tile_notes(fingerprint, first.prepare.size)
    study = write_plan(*plan, notes)
    console = plain_console()
    for line in (*describe_fingerprint(fingerprint), *notes):
        console.print(line)
    table = Table("setting", "value", "why", title=f"{out}", title_justify="left")
    for decision in decisions:
        table.add_row(decision.key, json.dumps(decision.value), decision.reason)
    console.print(table)
    print_shortcuts(shortcuts)
    typer.echo(f"written to {out}; next: medopt run {quote(str(out))}")
    print_json(
        as_json,
        {
            "study_file": str(out),
            "study": study.model_dump(mode="json"),
            "shortcuts": shortcuts.model_dump(mode="json"),
        },
    )


def _named(study: Study, name: str, question: str) -> Study:
    from medopt.config import Study

    given = {key: value for key, value in (("name", name), ("question", question.strip())) if value}
    if name and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise ConfigError(f"--name {name!r}: a study's name is lower-case letters, digits, - and _, at most 63.")
    return Study.model_validate(study.model_dump() | given)


def _folder(manifest: Path, guessed: Study, data: Path | None) -> Path:
    """Where the images lie: --data, else the first of the usual places that has the first image."""
    from medopt.config.study_file import data_folder
    from medopt.manifest.card import card_root

    if data is not None:
        places = [data]
    else:
        usual = data_folder(None)
        below = [path for path in (usual / guessed.name, usual / manifest.stem) if path.is_dir()]
        root = card_root(manifest)
        own = [manifest.parent, manifest.with_name(f"{manifest.stem}_files")]
        places = [*([root] if root else []), *own, usual, *below]
    place = with_first_image(manifest, places)
    if place is not None:
        return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise DataError(
        f"The manifest's images are not below {looked} (looked for the first of them). Give the folder that its paths "
        "start from with --data DIR: for a manifest that was built, the folder it was built of."
    )


def _memory(device: str) -> int | None:
    """Bytes that training may have here; None for a GPU that this machine does not have."""
    if device == "cpu":
        from medopt.training.memory import available_bytes

        return available_bytes()
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _device(name: str) -> str:
    if name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return name

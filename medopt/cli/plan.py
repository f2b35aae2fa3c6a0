"""`medopt plan`: a study file for a manifest, each choice with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medopt.config import Study
    from medopt.core.records import Case


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
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda: what will train.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Last line of stdout: the result as one JSON object.")
    ] = False,
) -> None:
    """Look at a manifest's scans and write a study file for them that runs as it is.

    Sizes, spacings, intensities, colours, classes and their number decide; each choice stands there with its reason.

    Example: medopt plan manifest.csv --data images --out lesions.yaml && medopt run lesions.yaml
    """
    from rich.table import Table

    from medopt.cli.console import ConsoleReporter, plain_console
    from medopt.manifest.infer_study import guess_study
    from medopt.manifest.table import read_manifest
    from medopt.planning.decide import decide
    from medopt.planning.fingerprint import take_fingerprint
    from medopt.planning.write import describe, write_plan

    guessed = guess_study(manifest)
    cases = read_manifest(manifest, guessed)
    folder = _folder(manifest, guessed, cases, data)
    reporter = ConsoleReporter()
    try:
        found = take_fingerprint(cases, guessed.data.labels, guessed.data.task, folder, reporter)
    finally:
        reporter.close()
    decisions = decide(found, _device(device), modality.upper())
    study = write_plan(out, manifest, folder.resolve(), guessed, found, decisions)
    console = plain_console()
    for line in describe(found):
        console.print(line)
    table = Table("setting", "value", "why", title=f"{out}", title_justify="left")
    for one in decisions:
        table.add_row(one.key, json.dumps(one.value), one.why)
    console.print(table)
    typer.echo(f"written to {out}; next: medopt run {out}")
    if as_json:
        typer.echo(json.dumps({"study_file": str(out), "study": study.model_dump(mode="json")}))


def _folder(manifest: Path, guessed: Study, cases: tuple[Case, ...], data: Path | None) -> Path:
    """Where the images lie: --data, else the first of the usual places that has the first image."""
    from medopt.config.study_file import data_folder
    from medopt.imaging.scan_path import parted

    if data is not None:
        places = [data]
    else:
        usual = data_folder(None)
        below = [path for path in (usual / guessed.name, usual / manifest.stem) if path.is_dir()]
        places = [manifest.parent, manifest.with_name(f"{manifest.stem}_files"), usual, *below]
    image = cases[0].image
    for place in places:
        if parted(place / image)[0].exists():
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise DataError(
        f"The manifest's images are not below {looked} (looked for the first of them). Give the folder that its paths "
        "start from with --data DIR: for a manifest that was built, the folder it was built of."
    )


def _device(name: str) -> str:
    if name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device takes auto, cpu or cuda; got {name!r}.")
    return name

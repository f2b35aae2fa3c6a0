"""`medopt init`, `medopt phantom` and `medopt fetch`: a place to begin, and the first images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption, StudyFile
from medopt.core.errors import ConfigError


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder of the study.")],
    name: Annotated[str, typer.Option("--name", help="Name of the study; else that of the folder.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Lay out a study's own folder: a README to fill in, a Makefile with the steps, a table of labels, a .gitignore.

    Scans, tables that name patients and runs stay out of git; the manifest, the study file and the README belong in it.

    Example: medopt init my-study
    """
    from medopt.planning.study_template import SCANS, write_layout

    written = write_layout(folder, name)
    for path in written:
        typer.echo(path)
    typer.echo(f"Put the scans into {folder / SCANS}, fill in labels.csv, then: cd {folder} && make manifest", err=True)
    print_json(as_json, {"files": [str(path) for path in written]})


def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it: images/ and manifest.csv.")],
    patients: Annotated[int, typer.Option("--patients", help="Number of patients.")] = 600,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same study, to the byte.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Draw the embedded study: chest-radiograph-like DICOM of three sites, with and without a nodule.

    No labelled set may be shipped with medopt, so it draws one. Nothing in it is a patient.

    Example: medopt phantom data/phantom
    """
    from medopt.phantom import draw_study

    with reporting() as reporter:
        manifest = draw_study(folder, patients=patients, seed=seed, reporter=reporter)
    typer.echo(manifest)
    print_json(as_json, {"manifest": str(manifest), "patients": patients, "seed": seed})


def fetch(
    study_file: StudyFile,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder to put the data into; else MEDOPT_DATA, else ./data.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a study's public data from their official address, and check them against the published checksum.

    Example: medopt fetch breastmnist --data data
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import data_folder, load_study
    from medopt.manifest.card import load_card
    from medopt.manifest.fetch import fetch_files

    path = study_path(study_file)
    study = load_study(path)
    card = load_card(path.parent / study.data.manifest)
    if card is None:
        raise ConfigError(f"The study {study.name} has no card that names an address; see its manifest's README.")
    with reporting() as reporter:
        files = fetch_files(card, data_folder(data), reporter)
    for file in files:
        typer.echo(file)
    print_json(as_json, {"study": study.name, "files": [str(file) for file in files]})

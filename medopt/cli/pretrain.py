"""`medopt pretrain`: weights to begin with, learned from scans without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption, RunsOption, SetOption, complete_study
from medopt.cli.places import study_data, with_first_image
from medopt.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medopt.manifest.unlabelled import UnlabelledImages
    from medopt.pipeline.pretrain import FinishedPretraining
    from medopt.pipeline.pretrain_images import HeldOutImages

HELPS = 0.02
"""A rise of the neighbours' AUC from which pretraining has learned something of what the labels ask."""


def pretrain(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST|FOLDER",
            help="A manifest CSV, of which only the column image is needed; or a folder of DICOM, NIfTI or images, a "
            ".zip of one, a MedMNIST .npz, a MONAI datalist.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="START.safetensors", help="The start to write.")],
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="STUDY",
            help="Study file whose size, intensities, augmentation and network are taken, so that the start fits it; "
            "else they are planned from the images, as medopt plan does.",
            autocompletion=complete_study,
        ),
    ] = None,
    leave_out: Annotated[
        list[Path] | None,
        typer.Option(
            "--leave-out",
            metavar="STUDY",
            help="Study whose test images, and their patients, must not be learned from: found by content, also in "
            "other files and as near-copies. Repeatable.",
            autocompletion=complete_study,
        ),
    ] = None,
    overrides: SetOption = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder that a manifest's image paths start from; else it is looked for."),
    ] = None,
    runs: RunsOption = Path("runs"),
    modality: Annotated[
        str, typer.Option("--modality", help="CT, MR, US, DX ...: for scans that do not say it (PNG, NIfTI).")
    ] = "",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="What will train.")] = "auto",
    probe_every: Annotated[
        int,
        typer.Option(
            "--probe-every",
            min=1,
            help="Epochs between two looks at what the nearest neighbours say of labelled images.",
        ),
    ] = 5,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on with the same run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Learn weights to begin with from scans without labels: those that the hospital has anyway.

    The network learns that two changed copies of an image show the same (VICReg); labels are not used. Where some
    images have labels, the AUC of their nearest neighbours is shown on the way: it should rise. The splits test and val
    of a manifest are not learned from. The start says by content which images it has seen.

    Interrupted or killed, the same command goes on where it was.

    Example: medopt pretrain scans --out start.safetensors --like lesions.yaml --leave-out lesions.yaml && medopt run
    lesions.yaml --set model.start=start.safetensors
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: a start is written as .safetensors.")
    if not source.exists():
        raise DataError(f"There is no file or folder {source}. Give a manifest CSV, or the folder of the scans.")
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study

    model = load_study(study_path(like)) if like else None
    with reporting() as reporter:
        tests = [_test_split(study, data) for study in leave_out or []]
        images = _images(source, data, runs, reporter)
        from medopt.pipeline.pretrain import plan_pretraining, run_pretraining
        from medopt.pipeline.pretrain_images import choose_images

        selection = choose_images(images, tests, reporter)
        words = [*([f"training.accelerator={device}"] if device != "auto" else []), *(overrides or [])]
        study = plan_pretraining(
            source, images, selection, model, words, _planned_for(device), modality.upper(), reporter
        )
        done = run_pretraining(study, images, selection, out, runs, reporter, probe_every, fresh)
    _show(done)
    print_json(as_json, _summary(done))


def _images(source: Path, data: Path | None, runs: Path, reporter: Any) -> UnlabelledImages:
    from dataclasses import replace

    from medopt.manifest.unlabelled import find_images, read_images

    if source.suffix.lower() != ".csv":
        return find_images(source, runs / f"{source.stem}_files", reporter)
    return replace(read_images(source), root=_folder(source, data))


def _folder(manifest: Path, data: Path | None) -> Path:
    """Where a manifest's images lie: --data, else the first of the usual places that has the first image."""
    from medopt.config.study_file import data_folder

    usual = data_folder(None)
    places = (
        [data]
        if data
        else [manifest.parent, manifest.with_name(f"{manifest.stem}_files"), usual, usual / manifest.stem]
    )
    place = with_first_image(manifest, places)
    if place is None:
        raise DataError(
            f"The manifest's images are not below {', '.join(map(str, places))} (looked for the first of them). Give "
            "the folder that its paths start from with --data DIR."
        )
    return place


def _test_split(study_file: Path, data: Path | None) -> HeldOutImages:
    """The test split of a study: below --data where it has its manifest or images, else where the study finds them."""
    from medopt.config.shipped import study_path
    from medopt.config.study_file import find_manifest, load_study
    from medopt.manifest.table import read_manifest
    from medopt.pipeline.pretrain_images import HeldOutImages

    path = study_path(study_file)
    study = load_study(path)
    folder = study_data(study, path, None)
    if data is not None and with_first_image(find_manifest(study, path, data), [data / study.data.root]):
        folder = data
    cases = read_manifest(find_manifest(study, path, folder), study)
    return HeldOutImages(study.name, tuple(case for case in cases if case.split == "test"), folder / study.data.root)


def _planned_for(device: str) -> str:
    if device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _show(done: FinishedPretraining) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console

    selection, last = done.selection, done.pretrained.history[-1]
    left = selection.left_out
    table = Table(title=f"{done.study.name}: a start from {len(selection.learn)} images", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("images learned from", f"{len(selection.learn)}"),
        ("left out: copies, near-copies of test images", f"{left.copies}, {left.near_copies}"),
        ("left out: other images of their patients", f"{left.of_their_patients}"),
        (
            "left out: splits test, val; cannot be used",
            f"{selection.of_test}, {len(selection.judge)}; {selection.unusable}",
        ),
        ("epochs", f"{len(done.pretrained.history)}"),
        ("AUC of the neighbours: drawn weights, pretrained", _scores(done)),
        ("rank of the embeddings", f"{last.rank:.1f}"),
        ("seconds", f"{sum(record.seconds for record in done.pretrained.history):.0f}"),
    ):
        table.add_row(name, value)
    console = plain_console()
    console.print(table)
    console.print(f"start    {done.start}\nrun      {done.folder}\nMLflow   {done.mlflow_link}", soft_wrap=True)
    steps = f"  medopt run STUDY --set model.start={done.start}"
    if no_help := _no_help(done.pretrained.before, last.neighbours):
        console.print(no_help, soft_wrap=True)
        steps += "\n  medopt run STUDY --set model.start=scratch"
    console.print(f"\nNext:\n{steps}", soft_wrap=True)


def _no_help(before: float | None, after: float | None) -> str:
    """What is said where the nearest neighbours' AUC has hardly risen."""
    if before is None or after is None or after >= before + HELPS:
        return ""
    return (
        f"Pretraining hardly changed what the nearest neighbours say of the labels (AUC {before:.3f} before, "
        f"{after:.3f} after), so this start may lower the accuracy. Train from scratch as well, and compare both."
    )


def _scores(done: FinishedPretraining) -> str:
    before, after = done.pretrained.before, done.pretrained.history[-1].neighbours
    if before is None or after is None:
        return "no labels"
    return f"{before:.3f}, {after:.3f}"


def _summary(done: FinishedPretraining) -> dict[str, Any]:
    left = done.selection.left_out
    curve: Sequence[Any] = done.pretrained.history
    return {
        "start": str(done.start),
        "run": str(done.folder),
        "mlflow": done.mlflow_link,
        "study": done.study.name,
        "images": len(done.selection.learn),
        "left_out": {
            "copies": left.copies,
            "near_copies": left.near_copies,
            "of_their_patients": left.of_their_patients,
        },
        "of_test": done.selection.of_test,
        "of_val": len(done.selection.judge),
        "unusable": done.selection.unusable,
        "epochs": len(curve),
        "loss": curve[-1].train_loss,
        "rank": curve[-1].rank,
        "neighbours_before": done.pretrained.before,
        "neighbours": {record.epoch + 1: record.neighbours for record in curve if record.neighbours is not None},
        "seconds": sum(record.seconds for record in curve),
        "device": done.pretrained.device,
    }

"""`medopt manifest check`: are these images what the manifest says, and is no score made too good by copies?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medopt.cli.command import outputs, print_json, reporting
from medopt.cli.options import JsonOption
from medopt.cli.places import study_data, with_first_image
from medopt.core.errors import DataError
from medopt.core.format import count_text

if TYPE_CHECKING:
    from medopt.config import Study
    from medopt.manifest.quality import ImageInspection
    from medopt.manifest.repair import Repair


def check(
    manifest: Annotated[Path, typer.Argument(help="A manifest CSV.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder that holds the data; else MEDOPT_DATA, the card's root or the manifest's."),
    ] = None,
    study_file: Annotated[
        Path | None, typer.Option("--study", help="A study file: its labels, its root, and what it accepts.")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            help="File to write: .csv (a repaired manifest that passes) or .png (the images, what is wrong first and "
            "in red). Repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every image of a manifest and look for what would make a score wrong: leaks, copies, damage, shortcuts.

    A shortcut is what tells the label without the image: its size, padding, brightness, bright corners, file or header.

    Exit code 0 where nothing is refused (there may be notes) or --out FILE.csv wrote a manifest that passes, else 3.

    Example: medopt manifest check manifest.csv --data images --out sheet.png --out repaired.csv
    """
    from medopt.cli.console import print_shortcuts
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study
    from medopt.evaluation.shortcuts import find_shortcuts, shortcut_findings
    from medopt.manifest.check import small_split_findings
    from medopt.manifest.image_facts import read_facts
    from medopt.manifest.infer_study import infer_study
    from medopt.manifest.quality import inspect_images
    from medopt.manifest.table import read_manifest
    from medopt.manifest.trivial_facts import moments_of

    files = outputs(out or (), {".csv": "the repaired manifest", ".png": "the contact sheet"})
    sheet, fix = files.get(".png"), files.get(".csv")
    path = study_path(study_file) if study_file else None
    study = load_study(path) if path else infer_study(manifest)
    dims = study.spatial_dims if path else None
    folder = study_data(study, path, data) / study.data.root if path else _root(manifest, data)
    cases = read_manifest(manifest, study)
    with reporting() as reporter:
        facts = read_facts(cases, folder, reporter, prepare=study.prepare)
    inspection = inspect_images(cases, facts, folder, study, dims)
    shortcuts = find_shortcuts(cases, [fact.trivial for fact in facts], study, moments_of(manifest))
    more = (*small_split_findings(cases, study), *shortcut_findings(shortcuts, study))
    inspection = replace(inspection, findings=(*inspection.findings, *more))
    _print(manifest, inspection, study)
    print_shortcuts(shortcuts)
    if sheet:
        _draw(sheet, inspection, study, dims)
    repair = _fix(manifest, fix, inspection, folder, study, dims) if fix else None
    result = _result(manifest, inspection, study, repair) | {"shortcuts": shortcuts.model_dump(mode="json")}
    print_json(as_json, result)
    if inspection.refused and repair is None:
        reasons = " ".join(f"{one.name}: {shorten(one.text, 300, placeholder=' ...')}" for one in inspection.refused)
        where = f" --data {quote(str(data))}" if data else ""
        raise DataError(
            f"The manifest {manifest} is refused. {reasons} The table of findings has the rest. To write a manifest in "
            "which copies are in one split and unusable images are left out: medopt manifest check "
            f"{quote(str(manifest))}{where} --out {quote(str(manifest.with_stem(f'{manifest.stem}_fixed')))}"
        )


def _root(manifest: Path, data: Path | None) -> Path:
    """Where a manifest's images are looked for: --data as it is; else MEDOPT_DATA, the card's root, its folder.

    Of these the first that has the first image.
    """
    from medopt.manifest.card import card_root

    if data is not None:
        return data
    usual, root = os.environ.get("MEDOPT_DATA"), card_root(manifest)
    places = [*([Path(usual)] if usual else []), *([root] if root else []), manifest.parent]
    return with_first_image(manifest, places) or places[0]


def _print(manifest: Path, inspection: ImageInspection, study: Study) -> None:
    from rich.table import Table
    from rich.text import Text

    from medopt.cli.console import plain_console, print_rows
    from medopt.manifest.quality import count_labels

    console = plain_console()
    print_rows(f"{manifest}: {count_text(len(inspection.cases), 'image')}", count_labels(inspection.cases, study))
    if not inspection.findings:
        console.print(Text("nothing is wrong", "green"))
        return
    table = Table("finding", "", "what", title="Findings", title_justify="left", show_lines=True)
    for finding in sorted(inspection.findings, key=lambda one: one.severity == "note"):
        accepted = "accepted" if finding.name in study.data.accept else "note"
        severity = Text("refused", "bold red") if finding.severity == "refuse" else Text(accepted, "yellow")
        table.add_row(finding.name, severity, finding.text)
    console.print(table)


def _draw(sheet: Path, inspection: ImageInspection, study: Study, dims: int | None) -> None:
    from medopt.figures.contact_sheet import draw_sheet
    from medopt.figures.fonts import label_legend
    from medopt.manifest.quality import unusable_images

    flagged = {row: reason[:24] for row, reason in unusable_images(inspection.facts, dims).items()}
    flagged |= {row: "burned-in text" for row, fact in enumerate(inspection.facts) if fact.burned_in}
    draw_sheet(sheet, inspection.cases, inspection.thumbnails, study, inspection.pairs, flagged)
    legend = label_legend(study.data.labels)
    typer.echo(f"drawn to {sheet}" + (f". {legend}" if legend else ""))


def _fix(
    manifest: Path, out: Path, inspection: ImageInspection, folder: Path, study: Study, dims: int | None
) -> Repair:
    """Write the mended manifest where it passes; raises DataError with what no repair can mend."""
    from medopt.cli.console import print_rows
    from medopt.manifest.quality import inspect_images, unusable_images
    from medopt.manifest.repair import plan_repair, write_repaired

    repair = plan_repair(inspection.cases, inspection.alike(), unusable_images(inspection.facts, dims))
    left = [fact for row, fact in enumerate(inspection.facts) if row not in repair.dropped]
    after = inspect_images(repair.apply(inspection.cases), left, folder, study, dims)
    if after.refused:
        texts = " ".join(f"{finding.name}: {finding.text}" for finding in after.refused)
        raise DataError(f"{out} was not written: mended, the manifest would still be refused. {texts}")
    write_repaired(manifest, out, repair)
    rows = _changes(inspection, repair)
    if rows:
        print_rows(f"{out}: {count_text(len(repair.moved), 'image')} moved, {len(repair.dropped)} dropped", rows[:40])
    more = f"and {len(rows) - 40} more; " if len(rows) > 40 else "" if rows else "nothing had to change; "
    typer.echo(f"{more}written to {out}")
    return repair


def _changes(inspection: ImageInspection, repair: Repair) -> list[dict[str, str]]:
    from medopt.manifest.findings import display_name

    dropped = [
        {"image": display_name(inspection.cases[row]), "from": inspection.cases[row].split, "to": "dropped", "why": why}
        for row, why in repair.dropped.items()
    ]
    moved = [
        {"image": display_name(inspection.cases[row]), "from": inspection.cases[row].split, "to": split}
        | {"why": "to its copies, or its patient's images"}
        for row, split in sorted(repair.moved.items())
    ]
    return dropped + moved


def _result(manifest: Path, inspection: ImageInspection, study: Study, repair: Repair | None) -> dict[str, Any]:
    from medopt.manifest.duplicates import count_leaked
    from medopt.manifest.quality import count_labels

    kinds: Sequence[tuple[str, bool]] = (("exact", True), ("near", False))
    return {
        "manifest": str(manifest),
        "images": len(inspection.cases),
        "refused": bool(inspection.refused) and repair is None,
        "findings": [{"name": one.name, "severity": one.severity, "text": one.text} for one in inspection.findings],
        "pairs": {name: sum(pair.exact is exact for pair in inspection.pairs) for name, exact in kinds},
        "images_with_a_copy_in_another_split": count_leaked(inspection.cases, inspection.pairs),
        "balance": count_labels(inspection.cases, study),
        "changes": _changes(inspection, repair) if repair else [],
    }

"""`medopt manifest build`: options in, a manifest out, and a table of what it holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medopt.cli.command import outputs, print_json, reporting
from medopt.cli.options import JsonOption, RenameOption, renaming
from medopt.core.errors import ConfigError, listed
from medopt.core.format import count_text

if TYPE_CHECKING:
    from medopt.manifest.build import BuiltManifest

MOST_SITES = 12


def build(
    source: Annotated[
        Path,
        typer.Argument(help="A folder of DICOM, NIfTI or images, a .zip of one, a MedMNIST .npz, a MONAI datalist."),
    ],
    out: Annotated[
        list[Path],
        typer.Option("--out", help="Manifest to write (.csv), its card beside it; and a MONAI datalist (.json)."),
    ],
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV with a key column and a label column.")] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            "--label-column",
            help="Label column; several make a multi-label study. Else the column label, or the only one that may be.",
        ),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="The label column is a measurement, as an age: for a regression study.")
    ] = False,
    rename: RenameOption = "",
    key: Annotated[str, typer.Option("--key", help="Key column of the labels; else the one that fits best.")] = "",
    patient: Annotated[
        str,
        typer.Option(
            "--patient",
            help="Regular expression whose group is the patient in the path; or table: the table of labels alone says "
            "it. Else the source and the table together: the persons of the table gather the source's patients.",
        ),
    ] = "",
    patient_per_image: Annotated[
        bool, typer.Option("--patient-per-image", help="Each image is another patient.")
    ] = False,
    split: Annotated[str, typer.Option("--split", help="Shares of train, val and test.")] = "0.7,0.15,0.15",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same splits.")] = 0,
    folds: Annotated[int, typer.Option("--folds", help="Number of folds instead of shares.")] = 0,
    fold: Annotated[int, typer.Option("--fold", help="Fold that tests, from 0; the next one validates.")] = 0,
    hold_out: Annotated[str, typer.Option("--hold-out", help="Site that becomes the test.")] = "",
    resplit: Annotated[bool, typer.Option("--resplit", help="Draw anew although the source has splits.")] = False,
    site_from: Annotated[
        Literal["auto", "institution", "scanner", "folder"],
        typer.Option("--site-from", help="auto: the institution, else the scanner; or one of them."),
    ] = "auto",
    kind: Annotated[
        Literal["auto", "dicom", "nifti", "images", "medmnist", "datalist"],
        typer.Option("--kind", help="What the source is; else detected from its files."),
    ] = "auto",
    description: Annotated[
        str, typer.Option("--description", help="Keep series (NIfTI: files) whose description this matches.")
    ] = "",
    series_rules: Annotated[
        Path | None, typer.Option("--series-rules", help="Study file whose data.series chooses a study's series.")
    ] = None,
    modality: Annotated[str, typer.Option("--modality", help="Keep DICOM series of this modality.")] = "",
    presentation_intent: Annotated[
        Literal["auto", "presentation", "processing"],
        typer.Option("--presentation-intent", help="Which of FOR PRESENTATION and FOR PROCESSING; auto: the former."),
    ] = "auto",
    keep_derived: Annotated[
        bool, typer.Option("--keep-derived", help="Keep localizers, derived series and secondary captures.")
    ] = False,
    class_folders: Annotated[
        bool, typer.Option("--class-folders", help="Folders are labels in a DICOM or NIfTI tree, too.")
    ] = False,
    class_level: Annotated[
        int,
        typer.Option(
            "--class-level",
            min=0,
            help="Level of the folders that are labels; 1: those directly in SOURCE. 0: detected.",
        ),
    ] = 0,
    root: Annotated[Path | None, typer.Option("--root", help="Folder that a datalist's paths start from.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build a manifest: which image is whose, what it shows, and in which split it is.

    Folders that are named for classes need no labels, with or without train and test folders above them. Splits are
    drawn by patient, stratified by label and site. Patients and UIDs become pseudonyms.

    Example: medopt manifest build scans --labels labels.csv --out manifest.csv
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study
    from medopt.manifest.build import BuildOptions, build_manifest
    from medopt.manifest.sources.scan_listing import SourceOptions
    from medopt.manifest.splits import SplitRules

    files = outputs(out, {".csv": "the manifest", ".json": "the MONAI datalist"})
    if ".csv" not in files:
        raise ConfigError("medopt manifest build writes a manifest: --out FILE.csv.")
    manifest, datalist = files[".csv"], files.get(".json")
    ruling = load_study(study_path(series_rules)) if series_rules else None
    options = BuildOptions(
        labels=labels,
        label_columns=tuple(label_column or ()),
        rename=renaming(rename),
        numbers=numbers,
        key=key,
        patient=patient,
        patient_per_image=patient_per_image,
        rules=SplitRules(_shares(split), seed, folds, fold, hold_out, resplit),
        source=SourceOptions(
            kind=kind,
            keep_derived=keep_derived,
            description=description,
            modality=modality,
            presentation_intent="" if presentation_intent == "auto" else presentation_intent,
            rules=ruling.data.series if ruling else None,
            may_miss=ruling is not None and ruling.prepare.missing_channel == "zeros",
            site_from=site_from,
            class_folders=class_folders,
            class_level=class_level,
            root=root,
        ),
        datalist=datalist,
    )
    with reporting() as reporter:
        built = build_manifest(source, manifest, options, reporter)
    _show(built, datalist)
    print_json(as_json, _summary(built))


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--split takes three shares, as in --split 0.7,0.15,0.15; got {text!r}.") from None
    return train, val, test


def _tally(built: BuiltManifest) -> list[dict[str, Any]]:
    """One row a class (multi-label: a finding), one column a split."""
    from medopt.core.records import SPLITS
    from medopt.manifest.sources.scan_listing import class_sort_key

    single = len(built.label_columns) == 1
    sides = _sides([row["label"] for row in built.rows]) if built.numbers else {}
    found: Counter[tuple[str, str]] = Counter()
    for row in built.rows:
        named = (
            [sides.get(row["label"], row["label"])]
            if single
            else [column for column in built.label_columns if row[column] == "1"]
        )
        found.update((name, row["split"]) for name in named)
    names = sorted({name for name, _ in found}, key=class_sort_key) if single else list(built.label_columns)
    rows = [{"label": name, **{split: found[name, split] for split in SPLITS}} for name in names]
    total = Counter(row["split"] for row in built.rows)
    patients = {split: len({row["patient_id"] for row in built.rows if row["split"] == split}) for split in SPLITS}
    return [*rows, {"label": "(rows)", **{s: total[s] for s in SPLITS}}, {"label": "(patients)", **patients}]


def _sides(cells: list[str]) -> dict[str, str]:
    """On which side of the median each measurement lies."""
    from statistics import median

    middle = median(map(float, cells))
    return {cell: f"{'above' if float(cell) > middle else 'up to'} {middle:g} (median)" for cell in cells}


def _show(built: BuiltManifest, datalist: Path | None) -> None:
    from medopt.cli.console import print_rows
    from medopt.core.records import SPLITS
    from medopt.manifest.sources.scan_listing import count_by_reason

    title = f"{count_text(len(built.rows), 'row')}, {built.listing.kind}"
    print_rows(title, [{**row, "all": sum(row[split] for split in SPLITS)} for row in _tally(built)])
    sites = Counter(row["site"] for row in built.rows).most_common()
    more = f", and {len(sites) - MOST_SITES} more" if len(sites) > MOST_SITES else ""
    classes = {row[column] for row in built.rows for column in built.label_columns}
    manifest, root = quote(str(built.manifest)), quote(str(built.listing.root))
    lines = [
        f"labels   {built.label_source}",
        f"split    {built.split_method}",
        f"sites    {', '.join(f'{site} ({count})' for site, count in sites[:MOST_SITES])}{more}",
        f"root     {built.listing.root}",
        f"manifest {built.manifest}",
        f"card     {built.card}",
        *([f"datalist {datalist}"] if datalist else []),
        *(
            f"left out {count}: {reason} ({listed(first, 3) if count == len(first) else ', '.join(first) + ', ...'})"
            for reason, count, first in count_by_reason(built.left_out, public_names=classes)
        ),
        *([f"labels without a scan {len(built.orphans)}: {listed(list(built.orphans))}"] if built.orphans else []),
        *(f"warning  {text}" for text in built.warnings),
        "",
        "Next:",
        f"  medopt manifest check {manifest} --data {root}",
        f"  medopt plan {manifest} --data {root} --out study.yaml",
    ]
    typer.echo("\n".join(lines))


def _summary(built: BuiltManifest) -> dict[str, Any]:
    from medopt.manifest.sources.scan_listing import count_by_reason

    tally = {str(row.pop("label")): row for row in _tally(built)}
    return {
        "manifest": str(built.manifest),
        "card": str(built.card),
        "root": str(built.listing.root),
        "kind": built.listing.kind,
        "rows": len(built.rows),
        "patients": len({row["patient_id"] for row in built.rows}),
        "splits": tally.pop("(rows)"),
        "patients_by_split": tally.pop("(patients)"),
        "labels": tally,
        "label_columns": list(built.label_columns),
        "sites": dict(Counter(row["site"] for row in built.rows)),
        "left_out": {reason: count for reason, count, _ in count_by_reason(built.left_out)},
        "labels_without_scan": len(built.orphans),
        "labelled_by": built.label_source,
        "split_by": built.split_method,
        "warnings": list(built.warnings),
    }

"""`medopt verify` and `medopt predict`: a release proved, and used on scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import CpusOption, JsonOption, ModelOption, RegistryOption, ReleaseArgument, WhereOption
from medopt.cli.places import release_folder, require_scans
from medopt.core.errors import DataError, listed
from medopt.core.format import count_text

if TYPE_CHECKING:
    from medopt.evaluation.guarantee import GuaranteeTable
    from medopt.serving.prediction_table import Row


def verify(release: ReleaseArgument, runs: RegistryOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check a release: every file unchanged, the chain the same, every golden case answered as when it was built, and
    the guarantee of int8 against float true on these cases and changed copies of them, here.

    The table shows what is promised and what the test cases showed of it when the release was built.

    Where MEDOPT_TRUST names a folder of trusted keys and certificates (.pem), its signature, too; then nothing opens a
    release that nobody trusted has signed.

    The packages here are compared with the release's list (sbom.cdx.json, CycloneDX); a difference is said. With a file
    same-runtime in the trust folder it is a refusal (exit code 6).

    Example: medopt verify runs/phantom
    """
    folder = release_folder(release, runs)
    from medopt.cli.console import print_rows
    from medopt.release.golden import verify_release
    from medopt.release.layout import read_info
    from medopt.release.sbom import runtime_differences
    from medopt.release.signature import check_trusted

    signer = check_trusted(folder)
    cases, statements = verify_release(folder)
    differences, table = runtime_differences(folder), read_info(folder).figures.guarantee
    rows = [{"case": case.case, "model": case.model, "difference": case.difference} for case in cases]
    print_rows(f"{folder}: unchanged; golden cases replayed", rows)
    if statements:
        print_rows("the guarantee on golden images here", [asdict(one) for one in statements])
    _print_guarantee(table)
    typer.echo(f"signed by {signer}" if signer else "the signature was not asked for: MEDOPT_TRUST is not set")
    for line in _runtime_lines(differences):
        typer.echo(line)
    golden, here = [asdict(case) for case in cases], [asdict(one) for one in statements]
    guarantee = {"test_cases": table and table.json_values(), "here": here}
    told = {"release": str(folder), "signed_by": signer, "runtime_differs": differences, "golden": golden}
    print_json(as_json, told | {"guarantee": guarantee})


def _print_guarantee(table: GuaranteeTable | None) -> None:
    from medopt.cli.console import print_rows
    from medopt.evaluation.guarantee import NOT_RECORDED

    if table is None:
        typer.echo(NOT_RECORDED)
        return
    print_rows(
        "what is promised, on the test cases of the build",
        [dict(zip(table.heads, row, strict=True)) for row in table.cells],
    )
    for line in (*table.promises, table.note):
        typer.echo(line)


def _runtime_lines(differences: list[str] | None) -> list[str]:
    if differences is None:
        return ["the release has no list of its packages: it was built by an earlier version"]
    if not differences:
        return ["the packages here are those of its sbom.cdx.json"]
    return [
        "the packages here are not those that it was built and verified with:",
        *(f"  {one}" for one in differences),
    ]


def predict(
    release: ReleaseArgument,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="DICOM, NIfTI or image files, or folders of them. Where a case has "
            "several images: NAME=FILE for each of one case, or a CSV with the columns image:NAME.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")] = Path("predictions.csv"),
    model: ModelOption = "int8",
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="onnxruntime or openvino; else the fastest that `medopt tune runtime` found."),
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            "--heatmaps",
            metavar="DIR",
            help="Write a PNG there for each finding that is present or undecided: where its evidence lay.",
        ),
    ] = None,
    covariates: Annotated[
        Path | None,
        typer.Option(
            "--covariates",
            metavar="TABLE.csv",
            help="Where the release answers by covariates, too: a CSV with their columns, and the scans' paths in the "
            "column path (or image, as in a manifest). What it lacks comes from the DICOM header where the study names "
            "an element, else it is missing.",
        ),
    ] = None,
    where: WhereOption = "local",
    job_cpus: CpusOption = 1,
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Predict scans with a release: a table, and a CSV with the reason of every refusal.

    Scans are decoded while the model works on those before, in batches; medopt tune runtime RELEASE finds the engine,
    threads and batch that are fastest here, and answers stay the same.

    A scan unlike those of the release's training is declined: it has a reason instead of a decision. Exit code 3
    where a scan cannot be read and is refused; the others are predicted all the same. With --on ray an archive is
    predicted in parts over a cluster.

    Example: medopt predict runs/phantom data/phantom/images/site_c --out answers.csv
    """
    folder = release_folder(release, runs)
    require_scans(paths)
    from medopt.cli.console import print_predictions
    from medopt.core.jobs import Fleet
    from medopt.release.predictor import Release
    from medopt.serving.batch import find_cases, find_scans, predict_archive, predict_scans
    from medopt.serving.covariate_table import read_covariates
    from medopt.serving.prediction_table import write_answers

    fleet = Fleet(where, job_cpus)
    predictor = Release.open(folder, model, engine, mode="throughput")
    names = predictor.info.prepare.channel_names
    scans = find_cases(paths, names) if names else find_scans(paths, len(predictor.info.prepare.size))
    wanted = predictor.info.covariates
    if covariates is not None and not wanted:
        raise DataError(f"The release {predictor.info.study} answers by the image alone: leave out --covariates.")
    cells = read_covariates(covariates, wanted, scans, names) if covariates is not None else None
    with reporting() as reporter:
        if predictor.note:
            reporter.message(predictor.note)
        if where == "local":
            answers = predict_scans(predictor, scans, reporter, covariates=cells)
        else:
            answers = predict_archive(folder, predictor.kind, engine, scans, fleet, reporter, cells)
        kinds = {"has_number": predictor.info.number is not None, "has_covariates": bool(wanted)}
        rows = write_answers(out, answers, predictor.info.labels, **kinds)
    _say_missing(rows)
    print_predictions(rows, predictor)
    declined = sum(row.answer is not None and bool(row.answer.declined) for row in rows)
    refused = [row.refused for row in rows if row.answer is None]
    typer.echo(
        f"{count_text(len(rows), 'scan')}{f', {declined} of them declined' if declined else ''}, written to {out}"
    )
    summary: dict[str, object] = {}
    if heatmaps is not None:
        from medopt.serving.heat_maps import write_heat_maps

        file = folder / predictor.info.models[predictor.kind].file
        with reporting() as reporter:
            summary["heatmaps"] = count = write_heat_maps(predictor, file, scans, rows, heatmaps, reporter)
        typer.echo(f"{count} heat maps written to {heatmaps}")
    print_json(
        as_json,
        {"release": str(folder), "out": str(out), "scans": len(rows), "declined": declined, "refused": len(refused)}
        | summary,
    )
    if refused:
        raise DataError(f"{len(refused)} of {len(rows)} scans were refused: {listed(refused)}")


def _say_missing(rows: Sequence[Row]) -> None:
    """How many scans were answered without each covariate."""
    missing = Counter(name for row in rows if row.answer for name in row.answer.missing)
    for name, scans in missing.items():
        typer.echo(f"the covariate {name} counted as missing in {count_text(scans, 'scan')} of {len(rows)}")

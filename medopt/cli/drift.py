"""`medopt drift`: is what a release answers in service still what it answered on validation?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, RegistryOption, ReleaseArgument
from medopt.cli.places import release_folder
from medopt.core.errors import DataError


def drift(
    release: ReleaseArgument,
    answers: Annotated[Path, typer.Argument(metavar="PREDICTIONS.csv", help="What `medopt predict --out` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("drift.html"),
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PLAN.yaml", help="Change control plan: says what a drifted column starts."),
    ] = None,
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Compare scores, headers and distances in service with those of validation: a table, and an HTML page.

    Only aggregates are shown. A month's worth of scans is a good measure: fewer than 15 tell nothing.

    Example: medopt drift runs/phantom/*/release march.csv --out march.html
    """
    folder = release_folder(release, runs)
    from medopt.cli.console import print_rows
    from medopt.release.drift_reference import Reference, compare
    from medopt.release.layout import check_sums, read_info
    from medopt.report.comparison_pages import write_drift
    from medopt.serving.prediction_table import read_observed

    check_sums(folder)
    info, reference = read_info(folder), Reference.read(folder)
    scans, observed = read_observed(answers, info.labels, has_number=info.number is not None)
    shifts = compare(reference, observed)
    if not shifts:
        raise DataError(
            f"{folder} was validated on {reference.scans} scans, too few to hold service against. Nothing was written."
        )
    write_drift(out, info.study, answers.name, (reference.scans, scans), shifts)
    title = f"{info.study}: {scans} scans in service against {reference.scans} of validation"
    print_rows(title, [_row(shift.name, shift.scans, shift.psi, shift.chance, shift.verdict) for shift in shifts])
    typer.echo(f"written to {out}")
    started = _started(plan, [shift.name for shift in shifts if shift.verdict == "drifted"]) if plan else {}
    for name, action in started.items():
        typer.echo(f"change plan: {name} drifted: {action}")
    columns = [asdict(shift) for shift in shifts]
    print_json(
        as_json, {"scans": scans, "validation": reference.scans, "columns": columns, "out": str(out), "starts": started}
    )


def _started(path: Path, drifted: list[str]) -> dict[str, str]:
    """What a change plan says of columns that have drifted."""
    from medopt.experiments.change_plan import read_plan

    plan, _ = read_plan(path)
    return {name: plan.triggers[name] for name in drifted if name in plan.triggers}


def _row(name: str, scans: int, psi: float | None, chance: float | None, verdict: str) -> dict[str, object]:
    def decimal(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return {"what": name, "scans": scans, "PSI": decimal(psi), "by chance": decimal(chance), "verdict": verdict}

"""`medopt drift`: is what a release answers in service still what it answered on validation?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.options import JsonOption
from medopt.core.errors import DataError


def drift(
    release: Annotated[Path, typer.Argument(help="The release folder that answered.")],
    answers: Annotated[Path, typer.Argument(metavar="PREDICTIONS.csv", help="What `medopt predict --out` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("drift.html"),
    as_json: JsonOption = False,
) -> None:
    """Compare scores, headers and distances in service with those of validation: a table, and an HTML page.

    Only aggregates are shown. A month's worth of scans is a good measure: fewer than 15 tell nothing.

    Example: medopt drift runs/phantom/*/release march.csv --out march.html
    """
    from medopt.cli.console import print_rows
    from medopt.release.drift_reference import Reference, compare
    from medopt.release.layout import check_sums, read_info
    from medopt.report.comparison_pages import write_drift
    from medopt.serving.prediction_table import read_observed

    check_sums(release)
    info, reference = read_info(release), Reference.read(release)
    scans, observed = read_observed(answers, info.labels)
    shifts = compare(reference, observed)
    if not shifts:
        raise DataError(
            f"{release} was validated on {reference.scans} scans, too few to hold service against. Nothing was written."
        )
    write_drift(out, info.study, answers.name, (reference.scans, scans), shifts)
    title = f"{info.study}: {scans} scans in service against {reference.scans} of validation"
    print_rows(title, [_row(one.name, one.scans, one.psi, one.chance, one.verdict) for one in shifts])
    typer.echo(f"written to {out}")
    if as_json:
        typer.echo(json.dumps({"scans": scans, "validation": reference.scans, "columns": [asdict(s) for s in shifts]}))


def _row(name: str, scans: int, psi: float | None, chance: float | None, verdict: str) -> dict[str, object]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return {"what": name, "scans": scans, "PSI": shown(psi), "by chance": shown(chance), "verdict": verdict}

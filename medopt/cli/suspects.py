"""`medopt manifest suspects` and `relabel`: labels that are probably wrong, and a reader's answers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption, Model
from medopt.cli.places import run_folder, study_data
from medopt.core.errors import DataError


def suspects(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders of one study; those of folds judge every image."),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that holds the data, for the pictures; else as medopt run.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for suspects.html (pictures) and suspects.csv (to fill in).")
    ] = Path("suspects"),
    model: Annotated[Model, typer.Option("--model", help="Which of the run's models judges.")] = "float",
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="Maximum number of labels on the page.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Find labels that are probably wrong, by models that were not trained on them (confident learning).

    Of one run the validation and test images are judged; runs of folds judge every image. The most suspicious labels
    come first. Write a label, keep or remove into the column answer of suspects.csv for medopt manifest relabel.

    Example: medopt manifest suspects runs/lesions/20261122-* --out suspects
    """
    from medopt.evaluation.label_suspects import ANSWERS, write_answers
    from medopt.experiments.suspects import find_suspects
    from medopt.report.suspects_page import write_suspects
    from medopt.transforms.prepare import PrepareChain

    folders = [run_folder(run) for run in runs]
    judged = find_suspects(folders, model)
    study, result = judged.study, judged.suspects
    root = study_data(study, folders[0] / "study.yaml", data) / study.data.root
    chain, missing = PrepareChain(study.prepare), 0
    with reporting() as reporter:
        advance = reporter.progress(min(count, len(result.suspects)), "pictures")

        def picture(suspect: Any) -> Any:
            nonlocal missing
            advance(1)
            case = judged.cases[suspect.case_id]
            paths = tuple(root / name if name else None for name in case.channels)
            try:
                return chain(paths or root / case.image).numpy()  # type: ignore[arg-type]
            except DataError:
                missing += 1
                return None

        write_suspects(out / "suspects.html", result, study.question, picture, count)
    write_answers(out / ANSWERS, result)
    typer.echo(result.summary)
    for one in result.suspects[:10]:
        name = "" if one.column == "label" else f"{one.column}: "
        typer.echo(f"{one.rank:3}  {one.split:5}  {name}{one.given} -> {one.suggested}  {one.margin:+.3f}  {one.image}")
    if missing:
        typer.echo(f"{missing} pictures could not be read below {root}; give the data folder with --data.")
    typer.echo(f"written to {out / 'suspects.html'} and {out / ANSWERS}")
    print_json(as_json, result.json_values())


def relabel(
    manifest: Annotated[Path, typer.Argument(help="The manifest CSV that the runs were of.")],
    answers: Annotated[Path, typer.Argument(help="suspects.csv with the column answer filled in.")],
    out: Annotated[Path, typer.Option("--out", help="The new manifest (.csv); its card is written beside it.")],
    reader: Annotated[str, typer.Option("--by", help="Who looked at the images; the new card says so.")] = "a reader",
    study_file: Annotated[
        Path | None, typer.Option("--study", help="The study file, where it renames the manifest's labels.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a reader's answers to suspected labels into a new manifest. The card goes along and says what was done.

    An answer is a label, keep, remove, or empty (not answered). The original manifest stays as it is.

    Example: medopt manifest relabel manifest.csv suspects/suspects.csv --out relabelled.csv --by "A. Reader"
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study
    from medopt.manifest.relabel import relabel as write_relabelled

    rename = load_study(study_path(study_file)).data.rename if study_file else {}
    done = write_relabelled(manifest, answers, out, reader, rename)
    typer.echo(f"{done.summary}; written to {out}")
    changes = [
        {"column": column, "from": old, "to": new, "labels": n} for (column, old, new), n in done.changed.items()
    ]
    values = {"changed": changes, "removed": done.removed, "kept": done.confirmed, "unanswered": done.unanswered}
    print_json(as_json, values | {"out": str(out)})

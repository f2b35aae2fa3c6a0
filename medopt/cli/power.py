"""`medopt manifest power`: how many patients a wished interval takes, and what more training patients would bring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, Model
from medopt.cli.places import run_folder
from medopt.core.errors import ConfigError
from medopt.core.format import format_estimate

if TYPE_CHECKING:
    from medopt.experiments.power import PowerResult

_SHARE = {"min": 0.0, "max": 1.0}


def power(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN...]", help="Runs with fewer and more training patients: the learning curve."),
    ] = None,
    auc: Annotated[float | None, typer.Option("--auc", **_SHARE, help="Expected AUC.")] = None,
    sensitivity: Annotated[float | None, typer.Option("--sensitivity", **_SHARE, help="Expected sensitivity.")] = None,
    specificity: Annotated[float | None, typer.Option("--specificity", **_SHARE, help="Expected specificity.")] = None,
    width: Annotated[float, typer.Option("--width", help="Wished width of the whole interval.")] = 0.1,
    prevalence: Annotated[
        float | None, typer.Option("--prevalence", **_SHARE, help="Share of the test patients with the finding.")
    ] = None,
    images: Annotated[float, typer.Option("--images", min=1.0, help="Images of a patient, on average.")] = 1.0,
    correlation: Annotated[
        float,
        typer.Option("--correlation", **_SHARE, help="How much a patient's images repeat each other; 1: wholly."),
    ] = 1.0,
    design_effect: Annotated[
        float | None,
        typer.Option("--design-effect", min=1.0, help="Instead of --correlation: 1 + (images - 1) x correlation."),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Level of the intervals.")] = 0.95,
    patients: Annotated[
        list[int] | None, typer.Option("--patients", min=1, help="Also the width, or AUC, at so many. Repeatable.")
    ] = None,
    model: Annotated[Model, typer.Option("--model", help="Which of the runs' models makes the curve.")] = "float",
    as_json: JsonOption = False,
) -> None:
    """Say how many patients it takes: of the test set for an interval of a wished width, of training for an AUC.

    The interval of an AUC is by Hanley and McNeil's variance, that of sensitivity and specificity is Wilson's. RUN...
    are runs on the same test cases with fewer and more training patients, through which an inverse power law is laid.

    Example: medopt manifest power --auc 0.9 --sensitivity 0.9 --prevalence 0.2 --width 0.1
    """
    given = {"auc": auc, "sensitivity": sensitivity, "specificity": specificity}
    expected = {name: value for name, value in given.items() if value is not None}
    if not expected and not runs:
        raise ConfigError("Give what you expect (--auc, --sensitivity, --specificity), or runs for a learning curve.")
    _check(expected, prevalence, width, confidence)
    from medopt.experiments.power import PowerResult, learning_curve, needed_patients
    from medopt.metrics.sample_size import Sampling

    effect = design_effect if design_effect is not None else 1 + (images - 1) * correlation
    if effect > images:
        raise ConfigError(f"--design-effect is at most the images of a patient ({images:g}); got {effect:g}.")
    sampling = Sampling(prevalence or 0.5, images, effect, confidence)  # without a prevalence nothing is expected
    needed = needed_patients(expected, width, sampling, patients or ())
    curve = learning_curve([run_folder(run) for run in runs], patients or (), model, confidence) if runs else None
    result = PowerResult(
        confidence=confidence, prevalence=prevalence, images=images, design_effect=effect, needed=needed, curve=curve
    )
    _print(result)
    print_json(as_json, result.json_values())


def _check(expected: dict[str, float], prevalence: float | None, width: float, confidence: float) -> None:
    for name, value in expected.items():
        low = 0.5 if name == "auc" else 0
        if not low < value < 1:
            raise ConfigError(f"--{name} is expected between {low:g} and 1, without these; got {value:g}.")
    if expected and (prevalence is None or not 0 < prevalence < 1):
        raise ConfigError("Give --prevalence, the share of the test patients with the finding, between 0 and 1.")
    if not 0 < width < 1 or not 0.5 < confidence < 1:
        raise ConfigError(
            f"--width lies between 0 and 1, --confidence between 0.5 and 1; got {width:g}, {confidence:g}."
        )


def _print(result: PowerResult) -> None:
    for one in result.needed:
        name = "AUC" if one.figure == "auc" else one.figure
        count = f"{one.patients} patients" if one.patients is not None else "no number of patients is enough"
        typer.echo(f"{name} {one.expected:g}, {result.confidence:.0%} interval {one.width:g} wide: {count}")
        for patients, width in one.widths.items():
            typer.echo(f"  with {patients} patients: {width:.3f} wide")
    if result.curve is None:
        return
    curve = result.curve
    for point in curve.runs:
        typer.echo(f"{point.patients:6} training patients: AUC {format_estimate(point.auc)}  {point.run}")
    typer.echo(f"AUC(n) = {curve.asymptote:.3f} - {curve.slope:.3g} x n^-{curve.exponent:.2f}")
    for patients, auc in curve.predicted.items():
        typer.echo(f"{patients:6} training patients: AUC {format_estimate(auc)} expected")
    typer.echo(curve.note)

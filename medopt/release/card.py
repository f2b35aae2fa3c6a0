"""The model card of a release, as JSON and as Markdown, from the run's own records.

The parts are those of Mitchell et al. 2019 (Model Cards for Model Reporting). The intended use is written by whoever
releases the model: where the study does not say it, the card says that it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from medopt.config import Intensity, Prepare
from medopt.core.format import amount_text, format_amount, format_estimate, unit_text
from medopt.core.number_scale import NumberScale
from medopt.core.provenance import CodeVersion, Machine
from medopt.core.records import KINDS, Estimate, Kind, Task, has_one_output
from medopt.core.result import WITH_DEFAULTS, Result
from medopt.evaluation.analysis_results import DomainResult, PruningStep, RobustnessResult, SanityCheck, StartRecord
from medopt.evaluation.covariate_effects import NOTE, CovariateEffect, effect_name, effects_of
from medopt.evaluation.gate_verdict import GateRecord
from medopt.evaluation.guarantee import NOT_RECORDED, GuaranteeTable
from medopt.evaluation.model_verdict import ModelVerdict
from medopt.evaluation.run_metrics import CalibrationResult
from medopt.evaluation.subgroup_results import SubgroupResults
from medopt.metrics.conformal import PredictionSets, class_names
from medopt.metrics.grade_figures import GradeFigures
from medopt.metrics.number_figures import NumberFigures
from medopt.metrics.numbers import Margin
from medopt.release.layout import ReleaseInfo
from medopt.release.reporting_guidelines import AUTHOR_ITEMS, COVERED

MISSING = "to be filled in by whoever puts this release into service (`intended_use` in the study file)"
FIGURES = ("auc", "average_precision", "accuracy", "sensitivity", "specificity", "ppv", "npv", "brier", "ece")


class CardModel(Result):
    """The model and its chain; calibration, threshold and band are those of the int8 model, which is served."""

    task: Task
    labels: list[str]
    input: Annotated[Prepare, WITH_DEFAULTS]
    chain_fingerprint: str
    served: Kind
    calibration: str
    threshold: float | tuple[float, ...] | None
    rule: str
    undecided_between: tuple[float, float] | None
    sets: PredictionSets | None = None
    engines: list[str]
    gate: GateRecord
    pruning: dict[str, PruningStep]
    size_bytes: dict[Kind, int]
    latency_ms: dict[str, float]


class CardOrigin(Result):
    """Where the release comes from."""

    manifest_digest: str
    mlflow_run_id: str | None
    code: CodeVersion
    packages: dict[str, str]
    machine: Machine


class Covered(Result):
    """An item of a reporting guideline, and where it is covered."""

    item: str
    what: str
    where: str


class Guidelines(Result):
    """What the card and the report cover of the reporting guidelines, and what is left to the authors."""

    covered: tuple[Covered, ...]
    left_to_the_authors: tuple[str, ...]


class ModelCard(Result):
    """`card.json`. Figures are those of the test split; `performance` is by model and figure, `sites` the int8 AUC."""

    name: str
    question: str
    intended_use: str
    status: str
    created: str
    model: CardModel
    confidence: float
    performance: dict[Kind, dict[str, Estimate]]
    sites: dict[str, Estimate]
    subgroups: SubgroupResults
    calibration: CalibrationResult
    robustness: RobustnessResult | None
    declines: DomainResult | None
    explanation: SanityCheck | None
    known_of_the_data: tuple[str, ...]
    start: StartRecord | None = None
    verdict: ModelVerdict | None = None
    number: NumberFigures | None = None
    """Of a regression study's number, int8; `margin` is how far it may be from the truth."""
    scale: NumberScale | None = None
    margin: Margin | None = None
    grades: GradeFigures | None = None
    guarantee: GuaranteeTable | None = None
    covariates: tuple[CovariateEffect, ...] = ()
    """What one change of each does, int8."""
    covariate_effect: str = ""
    provenance: CardOrigin
    guidelines: Guidelines


def card_of(info: ReleaseInfo) -> ModelCard:
    """The card of a release."""
    figures, int8, origin = info.figures, info.models["int8"], info.provenance
    model = CardModel(
        task=info.task,
        labels=info.labels,
        input=info.prepare,
        chain_fingerprint=info.chain_fingerprint,
        served="int8",
        calibration=str(int8.calibration),
        threshold=int8.threshold,
        rule=int8.rule,
        undecided_between=int8.band,
        sets=int8.sets,
        engines=int8.engines,
        gate=info.gate,
        pruning=figures.pruning or {},
        size_bytes={kind: figures.size_bytes[kind] for kind in KINDS},
        latency_ms=figures.latency_ms,
    )
    return ModelCard(
        name=info.study,
        question=info.question,
        intended_use=info.intended_use or MISSING,
        status="Research software, not a medical device.",
        created=info.created,
        model=model,
        confidence=figures.confidence,
        performance={kind: {name: figures.test[kind][name] for name in FIGURES} for kind in info.models},
        sites={site: one.int8.auc for site, one in figures.sites.items()},
        subgroups=figures.subgroups.int8,
        calibration=figures.calibration.int8,
        robustness=figures.robustness,
        declines=figures.domain,
        explanation=figures.explanations.sanity if figures.explanations else None,
        known_of_the_data=origin.data_notes,
        start=figures.baselines.start if figures.baselines else None,
        verdict=figures.verdict,
        number=figures.number.int8 if figures.number else None,
        scale=info.number,
        margin=int8.margin,
        grades=figures.grades.int8 if figures.grades else None,
        guarantee=figures.guarantee,
        covariates=effects_of(info.covariates, int8.covariates, info.task, info.number) if int8.covariates else (),
        covariate_effect=effect_name(info.task, info.number) if int8.covariates else "",
        provenance=CardOrigin(**origin.model_dump(exclude={"data_notes"})),
        guidelines=Guidelines(
            covered=tuple(Covered(item=item, what=what, where=where) for item, what, where in COVERED),
            left_to_the_authors=tuple(AUTHOR_ITEMS),
        ),
    )


def render_card(card: ModelCard) -> str:
    """The same in Markdown."""
    return "\n".join(
        [
            *(*_head(card), *_figures(card), *_guarantee(card.guarantee), *_limits(card), *_covariates(card)),
            *(*_model(card.model), *_origin(card), ""),
        ]
    )


def _head(card: ModelCard) -> Iterator[str]:
    yield from (f"# {card.name}", "", f"{card.question} {card.status}", "")
    gate = card.model.gate
    if override := gate.override:  # first of all: a person released it although a verdict did not pass it
        model = card.verdict
        if model is not None and not model.better_than_chance:
            yield f"**This model is {model.word}** ({'; '.join(model.reasons)})."
        if not gate.passed:
            said = "refused this int8 model" if gate.outcome == "refused" else "cannot tell whether int8 may be used"
            yield f"**The gate {said}** ({'; '.join(gate.reasons)})."
        yield from (f"**Released all the same by {override.by}** on {override.at[:10]}: {override.reason}", "")
    yield from (f"**Intended use**: {card.intended_use}.".replace("..", "."), "")


def _figures(card: ModelCard) -> Iterator[str]:
    yield from ("## Performance on the test split, scored once", "")
    yield from (f"| figure ({100 * card.confidence:g} % interval) | float | int8 |", "|---|---|---|")
    for name in FIGURES:
        cells = [_figure(card.performance[kind][name]) for kind in KINDS]
        yield f"| {name.replace('_', ' ')} | {' | '.join(cells)} |"
    yield from _quantity(card)
    yield from ("", "## By site (AUC, int8)", "", "| site | AUC | cases |", "|---|---|---|")
    for site, auc in card.sites.items():
        yield f"| {site} | {_figure(auc)} | {auc.n} |"
    yield ""


def _quantity(card: ModelCard) -> Iterator[str]:
    """Of a number or of grades: how far the int8 model is off."""
    if card.number is not None and card.scale is not None:
        one, unit, limit = card.number, unit_text(card.scale.unit), amount_text(card.scale.threshold)
        yield from (
            "",
            f"The figures above are of the question whether the {card.scale.quantity} is above {limit}{unit}.",
        )
        yield (
            f"The {card.scale.quantity} itself, int8: mean absolute error {format_amount(one.mae)}{unit}, R2 "
            f"{format_estimate(one.r2)}, mean difference {format_amount(one.bias)}{unit}, limits of agreement "
            f"{format_amount(one.lower)} and {format_amount(one.upper)}."
        )
        if card.margin is not None:
            promise = (
                f"holds the true number of {card.margin.coverage:.0%} of patients like those of validation or more"
            )
            yield f"The interval of an answer {promise}." if card.margin.reach else f"{card.margin.note}."
    if card.grades is not None:
        kappa, off = format_estimate(card.grades.kappa), format_estimate(card.grades.distance)
        yield from ("", f"The grades, int8: weighted kappa {kappa}, {off} grades off on average.")


def _figure(estimate: Estimate) -> str:
    """With the reason where it is not defined."""
    return f"{format_estimate(estimate)}{f' ({estimate.note})' if estimate.value is None else ''}"


def _guarantee(table: GuaranteeTable | None) -> Iterator[str]:
    """What is promised of int8, and what the test split showed of it."""
    yield from ("## What is promised", "")
    if table is None:
        yield from (f"- {NOT_RECORDED[0].upper()}{NOT_RECORDED[1:]}.", "")
        return
    yield from (f"- {one}." for one in table.promises)
    yield from ("", f"| {' | '.join(table.heads)} |", f"|{'---|' * len(table.heads)}")
    yield from (f"| {' | '.join(cells)} |" for cells in table.cells)
    yield from ("", table.note, "")


def _limits(card: ModelCard) -> Iterator[str]:
    yield from ("## Where it is weak", "")
    if card.verdict:
        yield from (f"- {remark[0].upper()}{remark[1:]}." for remark in card.verdict.remarks)
    groups = card.subgroups
    if groups.worst:
        worst = groups.worst
        yield f"- Lowest AUC: {worst.variable} {worst.group}, {format_estimate(worst.auc)}. {groups.note}"
    else:
        yield f"- Subgroups: {groups.note or 'none are known'}."
    if card.robustness:
        worse = card.robustness.int8
        yield (
            f"- On test images made worse in {len(worse.families)} ways at five levels: AUC "
            f"{format_estimate(worse.mean)}, {format_estimate(worse.drop)} lower than on the clean ones."
        )
    if card.declines:
        declined = format_estimate(card.declines.declined.int8.test)
        yield f"- It declines scans unlike those of its training: {declined} of the test images."
    if card.calibration.after:
        yield f"- Expected calibration error on test: {card.calibration.after.ece:.3f}."
    yield from (f"- {note}" for note in card.known_of_the_data)
    yield ""


def _covariates(card: ModelCard) -> Iterator[str]:
    """What is asked for beside the image."""
    if not card.covariates:
        return
    labels = card.model.labels[1:] if has_one_output(card.model.task) else card.model.labels
    heads = [f"{card.covariate_effect}, {label}" for label in labels] if len(labels) > 1 else [card.covariate_effect]
    yield from ("## Covariates", "", f"It answers by the image and by covariates, int8. {NOTE}", "")
    yield from (f"| change | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}")
    yield from (f"| {one.change} | {' | '.join(one.effects)} |" for one in card.covariates)
    yield ""


def _model(model: CardModel) -> Iterator[str]:
    prepare = model.input
    size, spacing = " x ".join(map(str, prepare.size)), prepare.spacing_mm
    yield from ("## Model and chain", "", f"- Labels: {', '.join(model.labels)} ({model.task}).")
    if names := prepare.channel_names:
        how = f"another grid: {prepare.channel_grid}; a missing one: {prepare.missing_channel}"
        yield f"- Images of a case, in this order: {', '.join(names)} ({how})."
    yield (
        f"- Input: {prepare.input_channels} x {size}{f', resampled to {spacing} mm' if spacing else ''}, fitted by "
        f"`{prepare.fit}`, intensities by `{prepare.intensity.method}`{_windows(prepare.intensity)}."
    )
    yield f"- Chain fingerprint: `{model.chain_fingerprint}`."
    yield f"- int8: {model.calibration}, threshold {model.threshold} ({model.rule}), all from validation."
    if model.pruning:
        left = 100 * list(model.pruning.values())[-1].multiply_adds.share
        yield f"- int8 is pruned: {left:.0f} % of the multiply-adds of the float network, trained on afterwards."
    if model.undecided_between:
        yield "- Undecided between {:.3f} and {:.3f}.".format(*model.undecided_between)
    if model.sets:
        yield f"- {model.sets.promise}"
        rows = zip(class_names(model.labels, model.task), model.sets.floors, model.sets.patients, strict=True)
        floors = [f"{name} from {floor:.3f} on ({count} validation patients)" for name, floor, count in rows]
        yield f"- Possible classes: {', '.join(floors)}; a case is undecided unless one alone is possible."
        if model.sets.note:
            yield f"- {model.sets.note[0].upper()}{model.sets.note[1:]}."
    gate = model.gate
    engines = "Engines that passed the gate" if gate.passed else "Engine that was judged"
    yield f"- {engines}: {', '.join(model.engines)}."
    if gate.in_float:
        yield f"- Layers in float: {len(gate.in_float)}; with all layers in int8 the gate did not pass it."
    word = gate.outcome if gate.passed else gate.outcome.upper()
    yield from (f"- Gate: {word}: {gate.decided_by}.", "")


def _windows(intensity: Intensity) -> str:
    ranges = [f"{part.low:g} to {part.high:g}" for part in intensity.parts]
    return f" ({', '.join(ranges)}), a channel each" if intensity.windows else ""


def _origin(card: ModelCard) -> Iterator[str]:
    origin, guidelines = card.provenance, card.guidelines
    yield from ("## Provenance", "", f"- Built {card.created} by {origin.code}.")
    if card.start is not None:
        yield f"- {card.start.sentence}"
    yield f"- Manifest digest `{origin.manifest_digest}`, MLflow run `{origin.mlflow_run_id}`."
    yield f"- Packages: {', '.join(f'{name} {version}' for name, version in origin.packages.items())}."
    covered = [f"{one.item} ({one.what})" for one in guidelines.covered]
    yield from ("", "## Reporting guidelines", "", f"Covered here and in the report: {'; '.join(covered)}.", "")
    yield f"Left to the authors: {'; '.join(guidelines.left_to_the_authors)}."

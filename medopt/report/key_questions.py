"""The first page: does it work, for whom not, how sure, and what int8 changed, each answered from the records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medopt.core.format import (
    amount_text,
    count_text,
    format_amount,
    format_difference,
    format_estimate,
    format_share,
    unit_text,
)
from medopt.core.records import NotDefined, has_one_output
from medopt.evaluation.model_verdict import CHANCE, NOT_SHOWN
from medopt.report.format import joined, plain
from medopt.report.run_records import RunRecords


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """A question of the first page and the sentences that answer it."""

    question: str
    sentences: tuple[str, ...]


def key_answers(run: RunRecords) -> list[KeyAnswer]:
    """The four answers, in the order in which a reviewer asks."""
    questions = (
        ("Does it work?", _works),
        ("For whom not?", _for_whom_not),
        ("How sure is that?", _how_sure),
        ("What did int8 change?", _int8),
    )
    return [KeyAnswer(question, tuple(answer(run))) for question, answer in questions]


def _works(run: RunRecords) -> Iterator[str]:
    test, split = run.metrics.test[run.served], run.splits["test"]
    yield (
        f"On {split.images} test images of {split.patients} patients, which took no part in any choice, the "
        f"{run.served} model has an AUC of {format_estimate(test.auc)}.{_chance(run)}"
    )
    yield from _quantity(run)
    yield from _brought(run)
    if not has_one_output(run.study.data.task):
        sensitivity = format_share(test.sensitivity)
        yield f"Its accuracy is {format_share(test.accuracy)}, its mean sensitivity {sensitivity}."
        return
    finding = plain(run.study.data.labels[1])
    (threshold,) = run.metrics.operating_point[run.served].thresholds
    yield (
        f"Called positive from a probability of {threshold:.2f}, it finds {format_share(test.sensitivity)} of the "
        f"images with “{finding}” and clears {format_share(test.specificity)} of those without."
    )
    yield (
        f"Of its positive answers {format_share(test.ppv)} are right, of its negative ones {format_share(test.npv)}"
        f"{_prevalence(run)}."
    )


def _quantity(run: RunRecords) -> Iterator[str]:
    """How far a number, or a grade, is off."""
    scale, number, grades = run.study.number_scale, run.metrics.number, run.metrics.grades
    if scale is not None and number is not None:
        unit, one = unit_text(scale.unit), number[run.served]
        limit = f"{amount_text(scale.threshold)}{unit}"
        yield f"That is the question whether the {scale.quantity} is above {limit}."
        yield (
            f"The {scale.quantity} itself is off by {format_amount(one.mae)}{unit} on average (R2 "
            f"{format_estimate(one.r2)})."
        )
    if grades is not None:
        one_grade = grades[run.served]
        yield (
            f"Its grades agree with the true ones with a weighted kappa of {format_estimate(one_grade.kappa)}; "
            f"{format_share(one_grade.within_one)} are at most one grade off."
        )


def _brought(run: RunRecords) -> Iterator[str]:
    """What training brought beyond linear models, of which the verdict's remarks do not speak already."""
    found, remarks = run.metrics.baselines, _chance(run)
    if found is None:
        return
    if found.linear_goes_on:
        yield "The network is a linear model on its start's features, which training did not beat on validation."
    gains = [
        f"{format_difference(one.gain)} against {one.title}"
        for name, one in found.models.items()
        if not (name == "start" and found.linear_goes_on) and one.title not in remarks
    ]
    if gains:
        yield f"The float network's AUC differs by {joined(gains)}."


def _chance(run: RunRecords) -> str:
    """The verdict on the model, where it is not good; of version 0.1.0, from the interval."""
    verdict, auc = run.metrics.verdict, run.metrics.test[run.served].auc
    if verdict is None:
        return f" That is {NOT_SHOWN}." if auc.low is None or auc.low <= CHANCE else ""
    if verdict.better_than_chance:
        return "".join(f" But {remark}." for remark in verdict.remarks)
    return f" The model is {verdict.word} ({'; '.join(verdict.reasons)})."


def _prevalence(run: RunRecords) -> str:
    stated = run.study.evaluation.prevalence
    return f", at a stated prevalence of {100 * stated:g} %" if stated else ", at the prevalence of this test split"


def _for_whom_not(run: RunRecords) -> Iterator[str]:
    results = run.metrics.subgroups[run.served]
    worst, groups = results.worst, list(results.groups())
    if worst is None:
        yield f"Nothing can be said: {results.note}."
    else:
        against = f", {format_difference(worst.difference)} against all others" if worst.difference else ""
        yield f"The lowest AUC is that of {worst.variable} {worst.group}: {format_estimate(worst.auc)}{against}."
    below = [
        f"{variable} {name} ({format_difference(group.difference.auc)})"
        for variable, name, group in groups
        if group.difference and group.difference.auc.high is not None and group.difference.auc.high < 0
    ]
    if groups and worst:
        yield (
            f"Significantly below all others: {joined(below)}."
            if below
            else "No group is significantly below the others; small groups rarely could be."
        )
    small = [f"{variable} {name}" for variable, name, group in groups if group.auc is None]
    if small:
        yield f"Too few cases for a statement about {joined(small)}."
    sites = list(run.splits["test"].sites)
    yield (
        "Not evaluated: patients from other sites (the site of these images is not recorded)."
        if sites == ["unknown"]
        else f"Not evaluated: patients from other sites than {joined(sites)}."
    )


def _how_sure(run: RunRecords) -> Iterator[str]:
    metrics = run.metrics
    level = f"{100 * metrics.confidence:g} %"
    yield (
        f"Intervals are {level} and account for several images per patient. They reflect the choice of patients, not "
        "another hospital or another training run."
    )
    calibration = metrics.calibration[run.served]
    if calibration.before and calibration.after:
        before, after = (100 * one.ece for one in (calibration.before, calibration.after))
        worse = ": calibration made it worse" if round(after, 1) > round(before, 1) else ""
        yield f"Calibration error {after:.1f} points ({before:.1f} before calibration{worse})."
    if metrics.robustness:
        degraded = metrics.robustness[run.served]
        strongest = {name: family.auc[-1] for name, family in degraded.families.items()}
        weakest = min(strongest, key=lambda name: strongest[name].value or 0.0)
        yield (
            f"On {metrics.robustness.cases} images, degraded in {len(strongest)} ways at five levels each, the mean "
            f"AUC is {format_estimate(degraded.mean)}, {format_estimate(degraded.drop)} lower than on clean images. It "
            f"is lowest at the strongest {plain(weakest)}: {format_estimate(strongest[weakest])}."
        )
    sets, selective = metrics.operating_point[run.served].sets, metrics.selective[run.served]
    if sets and not isinstance(selective, NotDefined) and selective.band:
        decided = format_share(selective.band.coverage)
        yield f"{sets.promise} It decides {decided} of the test {_units(run)} and leaves the others undecided."
        if sets.note:
            yield f"{sets.note[0].upper()}{sets.note[1:]}."
    if metrics.domain:
        declined = metrics.domain.declined[run.served]
        yield (
            f"The out-of-domain check before it declines {format_share(declined.test)} of the test images as unlike "
            f"those of training (set to {100 * metrics.domain.false_alarm:g} % on validation)."
        )
    if metrics.data_notes:
        yield "The data check raised the findings below; every figure on this page is affected by them."


def _units(run: RunRecords) -> str:
    return "labels" if run.study.data.task == "multilabel" else "images"


def _int8(run: RunRecords) -> Iterator[str]:
    metrics, gate = run.metrics, run.metrics.gate
    measured = gate.figures.engines[metrics.engine.int8]
    if metrics.pruning:
        last = list(metrics.pruning.values())[-1]
        yield (
            f"It is also pruned: its network has {100 * last.multiply_adds.share:.0f} % of the float network's "
            "multiply-adds and was fine-tuned. The figures below show what pruning and int8 changed together."
        )
    yield (
        f"On the same validation images the AUC changes by {format_difference(measured.auc_difference)}, and "
        f"{format_share(measured.decision_flips)} of decisions change. Probabilities shift by "
        f"{100 * (measured.probability_shift.value or 0.0):.1f} points on average. Each image is judged with a "
        "calibration and a threshold that were fitted without it."
    )
    yield (
        f"On test: float {format_estimate(metrics.test.float.auc)}, int8 {format_estimate(metrics.test.int8.auc)}, a "
        f"change of {format_difference(metrics.int8_on_test.auc_difference)}; "
        f"{format_share(metrics.int8_on_test.decision_flips)} of decisions change."
    )
    if gate.in_float:
        yield (
            f"{count_text(len(gate.in_float), 'layer')} stayed in float: the most sensitive ones, ranked on training "
            "images. With all layers in int8 the gate did not pass the model."
        )
    times, size = metrics.served_ms, metrics.size_bytes
    yield (
        f"An image takes {times.int8:.2g} ms instead of {times.float:.2g} ms in the faster engine, and the file has "
        f"{size.int8 / 1e6:.2f} MB instead of {size.float / 1e6:.2f} MB."
    )
    if measured.shifted:
        yield f"{measured.shifted.sentence[0].upper()}{measured.shifted.sentence[1:]}."
    told = {"passed": "It passed the gate", "refused": "The gate refused it", "cannot tell": "The gate cannot tell"}
    yield f"{told[gate.outcome]}: {gate.decided_by}."
    if override := gate.override:
        yield f"{override.by} released it all the same: {override.reason}"
    elif not metrics.is_released:
        yield "There is no release."

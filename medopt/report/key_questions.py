"""The first page: does it work, for whom not, how sure, and what int8 changed, each answered from the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medopt.report.format import below_zero, difference, figure, joined, plain, share
from medopt.report.run_records import RunRecords


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """A question of the first page and the sentences that answer it."""

    question: str
    sentences: tuple[str, ...]


def answers(run: RunRecords) -> list[KeyAnswer]:
    """The four answers, in the order in which a reviewer asks."""
    asked = (
        ("Does it work?", _works),
        ("For whom not?", _for_whom_not),
        ("How sure is that?", _how_sure),
        ("What did int8 change?", _int8),
    )
    return [KeyAnswer(question, tuple(answer(run))) for question, answer in asked]


def _works(run: RunRecords) -> Iterator[str]:
    test, split = run.metrics["test"][run.served], run.splits["test"]
    yield (
        f"On {split['images']} test images of {split['patients']} patients, which took no part in any choice, the "
        f"{run.served} model has an AUC of {figure(test['auc'])}.{_chance(test['auc'])}"
    )
    if run.study["data"]["task"] != "binary":
        yield f"Its accuracy is {share(test['accuracy'])}, its mean sensitivity {share(test['sensitivity'])}."
        return
    finding = plain(run.study["data"]["labels"][1])
    threshold = run.metrics["operating_point"][run.served]["threshold"]
    yield (
        f"Called positive from a probability of {threshold:.2f}, it finds {share(test['sensitivity'])} of the images "
        f"with “{finding}” and clears {share(test['specificity'])} of those without."
    )
    yield (
        f"Of its positive answers {share(test['ppv'])} are right, of its negative ones {share(test['npv'])}"
        f"{_prevalence(run)}."
    )


def _chance(auc: Mapping[str, Any]) -> str:
    low = auc["low"]
    return " That is not shown to be better than chance." if low is not None and low <= 0.5 else ""


def _prevalence(run: RunRecords) -> str:
    stated = run.study["evaluation"].get("prevalence")
    return f", at a stated prevalence of {100 * stated:g} %" if stated else ", at the prevalence of this test split"


def _for_whom_not(run: RunRecords) -> Iterator[str]:
    told = run.metrics.get("subgroups", {}).get(run.served, {})
    worst = told.get("worst")
    if not worst:
        yield f"Nothing can be said: {told.get('note', 'no site and no subgroup is known of these cases')}."
    else:
        apart = worst.get("difference")
        against = f", {difference(apart)} against all others" if apart else ""
        yield f"The lowest AUC is that of {worst['variable']} {worst['group']}: {figure(worst['auc'])}{against}."
    groups = list(_groups(told))
    apart = [
        f"{variable} {name} ({difference(one['difference']['auc'])})"
        for variable, name, one in groups
        if below_zero((one.get("difference") or {}).get("auc"))
    ]
    if groups and worst:
        yield (
            f"Below all others, with an interval that excludes 0: {joined(apart)}."
            if apart
            else "No group lies below the others with an interval that excludes 0; small groups rarely could."
        )
    small = [f"{variable} {name}" for variable, name, one in groups if not one.get("auc")]
    if small:
        yield f"Too few cases to say anything of {joined(small)}."
    yield f"Not looked at, as no case is known of it: anybody outside {joined(_present(run))}."


def _groups(told: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for variable, groups in told.get("variables", {}).items():
        for name, one in groups.items():
            yield variable, name, one


def _present(run: RunRecords) -> list[str]:
    sites = run.splits["test"]["sites"]
    return [f"the site{'s' if len(sites) > 1 else ''} {joined(list(sites))}"]


def _how_sure(run: RunRecords) -> Iterator[str]:
    level = f"{100 * run.metrics['confidence']:g} %"
    yield (
        f"Intervals are {level} and know that images of one patient belong together. They cover which patients came, "
        "not another hospital and not another training."
    )
    calibrated = run.metrics.get("calibration", {}).get(run.served, {})
    before, after = calibrated.get("before"), calibrated.get("after")
    if after:
        yield (
            f"A probability is off by {100 * after['ece']:.1f} points on average after calibration on validation "
            f"({100 * before['ece']:.1f} before)."
        )
    worse = run.robustness.get(run.served)
    if worse:
        families = worse["families"]
        weakest = min(families, key=lambda name: families[name]["auc"][-1]["value"] or 0.0)
        yield (
            f"On {run.robustness['cases']} images made worse in {len(families)} ways at five levels each the AUC is "
            f"{figure(worse['mean'])} on average, {figure(worse['drop'])} lower than on the clean ones; it is least at "
            f"the strongest {plain(weakest)}: {figure(families[weakest]['auc'][-1])}."
        )
    declined = run.domain.get("declined", {}).get(run.served)
    if declined:
        yield (
            f"The gate before it declines {share(declined['test'])} of the test images as unlike those of training "
            f"(set to {100 * run.domain['false_alarm']:g} % on validation)."
        )
    if run.metrics["data_notes"]:
        yield "What is known against the data stands below; it bears on every figure here."


def _int8(run: RunRecords) -> Iterator[str]:
    gate, latency = run.metrics["gate"], run.metrics["latency_ms"]
    engine = run.metrics["engine"]
    measured = gate["figures"]["engines"][engine["int8"]]
    if run.pruning:
        last = list(run.pruning.values())[-1]
        yield (
            f"It is pruned, too: its network has {100 * last['multiply_adds']['share']:.0f} % of the multiply-adds of "
            "the float one and was trained on; all that follows is what both changed."
        )
    yield (
        f"On the same validation images the AUC changes by {difference(measured['auc_difference'])}, and "
        f"{share(measured['decision_flips'])} of the decisions turn over; a probability moves by "
        f"{100 * measured['probability_shift']['value']:.1f} points on average, {100 * measured['largest_shift']:.0f} "
        "at most. Each image is judged with a calibration and a threshold fitted without it."
    )
    test, size = run.metrics["test"], run.metrics["size_bytes"]
    changed = run.metrics["int8_on_test"]
    yield (
        f"On test: float {figure(test['float']['auc'])}, int8 {figure(test['int8']['auc'])}, a change of "
        f"{difference(changed['auc_difference'])}; {share(changed['decision_flips'])} of the decisions turn over."
    )
    if layers := gate["in_float"]:
        yield f"{len(layers)} of its layers compute in float: in int8 they harmed most, and the gate refused it."
    times = [latency[f"{engine[kind]}_{kind}"] for kind in ("float", "int8")]
    yield (
        f"An image takes {times[1]:.2g} ms instead of {times[0]:.2g} ms in the faster engine, and the file has "
        f"{size['int8'] / 1e6:.2f} MB instead of {size['float'] / 1e6:.2f} MB."
    )
    if not gate["passed"]:
        told = gate["override"]
        ending = f"{told['by']} released it all the same: {told['reason']}" if told else "There is no release."
        yield f"The gate refused it: {'; '.join(gate['reasons'])}. {ending}"

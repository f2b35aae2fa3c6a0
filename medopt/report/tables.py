"""The tables of a report: headings and rows of text, nothing computed that the records do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from medopt.config import Study
from medopt.core.format import UNDEFINED, format_amount, format_difference, format_estimate, format_share, unit_text
from medopt.core.records import KINDS, NotDefined, has_one_output
from medopt.evaluation.covariate_effects import NOTE, effect_name, effects_of
from medopt.evaluation.model_verdict import COVARIATES
from medopt.evaluation.subgroup_results import SubgroupFigures
from medopt.metrics.conformal import class_names
from medopt.metrics.figures import REPORTED
from medopt.report.format import plain
from medopt.report.run_records import RunRecords


@dataclass(frozen=True, slots=True)
class ReportTable:
    """Rows of text under headings; `numbers` says from which column on figures stand. Notes go beneath."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: int = 1


def performance(run: RunRecords) -> ReportTable:
    """Every figure of both models on test, with that of validation beside it."""
    test, validation = run.metrics.test, run.metrics.validation
    rows = [
        [_called(name), *(format_estimate(test[kind][name]) for kind in KINDS), format_estimate(validation.int8[name])]
        for name in REPORTED
    ]
    # A note of many figures is given once, with the names of those figures.
    named: dict[str, list[str]] = {}
    for name in REPORTED:
        if note := test.int8[name].note:
            named.setdefault(note, []).append(_called(name))
    notes = [f"{', '.join(names)}: {note}." for note, names in named.items()]
    columns = ["figure", "float, test", "int8, test", "int8, validation"]
    return ReportTable("Performance", columns, rows, notes)


def number(run: RunRecords) -> ReportTable | None:
    """How the number of a regression study agrees with the truth, both models."""
    found, margin = run.metrics.number, run.metrics.margin
    if found is None:
        return None
    unit = unit_text(found.float.unit)
    names = {
        f"mean absolute error,{unit}": "mae",
        f"root mean square error,{unit}": "rmse",
        f"mean difference (bias),{unit}": "bias",
        f"lower limit of agreement,{unit}": "lower",
        f"upper limit of agreement,{unit}": "upper",
    }
    rows = [
        [title.rstrip(","), *(format_amount(getattr(found[kind], name)) for kind in KINDS)]
        for title, name in names.items()
    ]
    rows.append(["R2", *(format_estimate(found[kind].r2) for kind in KINDS)])
    notes = ["A difference is predicted less true. 95 % of differences are expected within the limits of agreement."]
    if margin is not None and margin.int8.reach is not None:
        rows.append(["true numbers in their interval", *(format_share(found[kind].covered) for kind in KINDS)])
        notes.append(
            f"Each answer comes with an interval that holds the true number of {margin.int8.coverage:.0%} of new "
            f"patients or more, if they come as the {margin.int8.patients} validation patients did (split conformal)."
        )
    elif margin is not None:
        notes.append(f"{margin.int8.note[0].upper()}{margin.int8.note[1:]}.")
    return ReportTable("The number", ["figure", "float, test", "int8, test"], rows, notes)


def grades(run: RunRecords) -> ReportTable | None:
    """How the grades of an ordinal study agree with the true ones, both models."""
    found = run.metrics.grades
    if found is None:
        return None
    rows = [
        ["quadratically weighted kappa", *(format_estimate(found[kind].kappa) for kind in KINDS)],
        ["grades off on average", *(format_estimate(found[kind].distance) for kind in KINDS)],
        ["at most one grade off", *(format_share(found[kind].within_one) for kind in KINDS)],
    ]
    notes = ["A case gets the median grade: the lowest one up to which at least half of its probability lies."]
    return ReportTable("The grades", ["figure", "float, test", "int8, test"], rows, notes)


def _called(name: str) -> str:
    short = {"auc": "AUC", "ppv": "PPV", "npv": "NPV", "f1": "F1", "ece": "ECE", "ace": "ACE", "brier": "Brier score"}
    return short.get(name, plain(name))


def baselines(run: RunRecords) -> ReportTable | None:
    """The trained network beside the linear models that it has to beat."""
    found = run.metrics.baselines
    if found is None:
        return None
    rows = [["trained network, float", format_estimate(run.metrics.test.float.auc), ""]]
    rows += [
        [one.title.removeprefix("a "), format_estimate(one.auc), format_difference(one.gain)]
        for one in found.models.values()
    ]
    notes = ["Each penalty was chosen on validation; differences are paired on the same patients."]
    if COVARIATES in found.models:
        notes.append(
            "The network answers by the image and the covariates. Without its covariates it is the image's part of the "
            "same network; a network that was trained on images alone may do better than that."
        )
    if found.linear_goes_on:
        notes.append("Training did not beat the linear model on the start's features, so the network is that model.")
    if found.start is not None:
        notes.append(found.start.sentence)
    return ReportTable("What training brought", ["model", "AUC, test", "network less this one"], rows, notes)


def covariates(run: RunRecords) -> ReportTable | None:
    """What one change of each covariate does to the answer, of the model that is served."""
    found, study = run.metrics.covariates, run.study
    if found is None:
        return None
    task, scale, labels = study.data.task, study.number_scale, study.data.labels
    effects = effects_of(study.data.covariates, found[run.served], task, scale)
    outputs = labels[1:] if has_one_output(task) else labels
    name = effect_name(task, scale)
    heads = [f"{name}, {label}" for label in outputs] if len(outputs) > 1 else [name]
    rows = [[one.change, *one.effects] for one in effects]
    return ReportTable("What the covariates do", ["change", *heads], rows, [NOTE])


def shortcuts(run: RunRecords) -> ReportTable | None:
    """How far size, padding, brightness and header of an image alone tell the label."""
    found = run.metrics.baselines.shortcuts if run.metrics.baselines else None
    if found is None or not found.looks:
        return None
    rows = [
        [one.name, format_estimate(one.auc), format_estimate(one.corrected), "shortcut" if one.is_shortcut else ""]
        for one in found.looks
    ]
    notes = [
        f"{found.images} training and validation images of {found.patients} patients, each scored by a logistic "
        "model of other patients that knows this fact alone. A shortcut is one whose corrected interval lies above "
        "0.5, with an AUC of at least 0.6: a network can learn it instead of the finding."
    ]
    columns = ["fact about the image", "AUC", f"corrected for {len(rows)} looks", ""]
    return ReportTable("Shortcuts: what predicts the label without the image", columns, rows, notes)


def patients(run: RunRecords) -> ReportTable | None:
    """The figures of patients instead of images, where a patient has several."""
    results = [run.metrics.patients[kind].test for kind in KINDS]
    figures = [result for result in results if result is not None]
    if len(figures) < len(KINDS):
        return None
    rows = [[_called(name), *(format_estimate(one[name]) for one in figures)] for name in REPORTED]
    aggregate = run.metrics.patients.int8.aggregate
    note = f"A patient's answer is the {aggregate}; decided anew on validation's patients."
    return ReportTable("By patient", ["figure", "float, test", "int8, test"], rows, [note])


def guarantee(run: RunRecords) -> ReportTable | None:
    """What prediction sets promise to each class, and what became of it on test."""
    sets, found = run.metrics.operating_point[run.served].sets, run.metrics.selective[run.served]
    if sets is None or isinstance(found, NotDefined) or found.band is None:
        return None
    names = class_names(run.study.data.labels, run.study.data.task)
    columns = zip(names, sets.patients, sets.floors, found.band.kept, strict=True)
    rows = [
        [name, str(count), f"{floor:.3f}" if floor else "always", format_share(kept)]
        for name, count, floor, kept in columns
    ]
    decided, risk = format_share(found.band.coverage), format_share(found.band.risk)
    notes = [f"{sets.promise} Decided on test: {decided}, of these {risk} wrongly."]
    notes += [f"{sets.note[0].upper()}{sets.note[1:]}."] if sets.note else []
    headings = ["class", "validation patients", "possible from a probability of", "kept on test"]
    return ReportTable(f"What is promised to each class, {run.served}", headings, rows, notes)


def subgroups(run: RunRecords) -> ReportTable | None:
    """Sites and subgroups of the served model."""
    results = run.metrics.subgroups[run.served]
    rows = [_group_row(f"{variable}: {name}", group) for variable, name, group in results.groups()]
    if not rows:
        return None
    less = "AUC less that of all others"
    columns = ["group", "patients / images", "AUC", less, "uncorrected", "sensitivity", "specificity"]
    notes = [results.note] if results.note else []
    return ReportTable(f"Sites and subgroups, {run.served}, test", columns, rows, notes)


def _group_row(name: str, group: SubgroupFigures) -> list[str]:
    counts = f"{group.patients} / {group.cases}"
    if group.auc is None:
        return [name, counts, group.note, "", "", "", ""]
    apart, alone = (format_difference(each.auc if each else None) for each in (group.difference, group.uncorrected))
    rates = [format_estimate(rate, 2) for rate in (group.sensitivity, group.specificity)]
    return [name, counts, format_estimate(group.auc), apart, alone, *rates]


def robustness(run: RunRecords) -> ReportTable | None:
    """AUC by family and level, both models."""
    results = run.metrics.robustness
    if results is None:
        return None
    rows = []
    for kind in KINDS:
        for family, one in results[kind].families.items():
            levels = [UNDEFINED if level.value is None else f"{level.value:.3f}" for level in one.auc]
            rows.append([f"{plain(family)}, {kind}", *levels, format_estimate(one.drop)])
    notes = [
        f"{kind}: clean {format_estimate(results[kind].clean)}, mean over all families and levels "
        f"{format_estimate(results[kind].mean)}, {format_estimate(results[kind].drop)} lower."
        for kind in KINDS
    ]
    columns = ["degraded by", *(f"level {level}" for level in range(1, 6)), "mean lower by"]
    return ReportTable(f"AUC on {results.cases} degraded test images", columns, rows, notes)


def front(run: RunRecords) -> ReportTable | None:
    """What `medopt compress` tried, on validation."""
    if run.front is None:
        return None
    rows = [
        [
            f"{option.name}{' (chosen)' if option.name == run.front.chosen else ''}",
            format_estimate(option.auc),
            format_difference(option.auc_difference),
            format_share(option.decision_flips),
            f"{option.latency_ms:.2f}",
            f"{option.size_bytes / 1e6:.2f}",
            f"{option.multiply_adds / 1e6:.1f}",
            "; ".join(option.faults),
        ]
        for option in run.front.options
    ]
    heads = ("option", "AUC", "less float", "decisions that flip", "ms", "MB", "million multiply-adds", "refused, as")
    title = f"Options on {run.front.validation_cases} validation images"
    return ReportTable(title, heads, rows, ["Times are medians of interleaved runs at batch 1, in the faster engine."])


def domain(run: RunRecords) -> ReportTable | None:
    """Which scans the out-of-domain check declines."""
    results = run.metrics.domain
    if results is None:
        return None
    declined = results.declined[run.served]
    shares = {"validation, as it is": declined.validation, "test, as it is": declined.test}
    shares |= {f"test, {site}": one for site, one in declined.sites.items()}
    shares |= {f"test, {plain(name)}": one for name, one in results.altered.items()}
    notes = [f"Set to decline {100 * results.false_alarm:g} % of good scans; limits from validation."]
    rows = [[name, format_share(one)] for name, one in shares.items()]
    return ReportTable("Scans that are declined", ["images", "declined"], rows, notes)


def data(run: RunRecords) -> ReportTable:
    """Who is in which split."""
    labels = list(dict.fromkeys(name for counts in run.splits.values() for name in counts.labels))
    rows = []
    for split, counts in run.splits.items():
        sites = ", ".join(f"{site} {count}" for site, count in counts.sites.items())
        by_label = [str(counts.labels.get(name, 0)) for name in labels]
        rows.append([split, str(counts.patients), str(counts.images), *by_label, sites])
    return ReportTable("Data", ["split", "patients", "images", *map(plain, labels), "sites"], rows)


def speed(run: RunRecords) -> ReportTable:
    """Time of an image in each engine, and how long the run took."""
    rows = [[plain(name), f"{value:.3g} ms"] for name, value in run.metrics.latency_ms.items()]
    rows += [[f"stage {name}", f"{record.seconds:.1f} s"] for name, record in run.stages.items()]
    where = ", ".join(f"{key} {value}" for key, value in asdict(run.metrics.machine).items())
    return ReportTable("Times", ["what", "time"], rows, [f"Median of one image at a time, on: {where}."])


def provenance(run: RunRecords) -> ReportTable:
    """What was run, with what."""
    rows = [
        ["study", run.study.name],
        ["seed", str(run.metrics.seed)],
        ["run", run.folder.name],
        ["MLflow run", str(run.metrics.mlflow_run_id)],
        *([name, version] for name, version in run.metrics.packages.items()),
    ]
    return ReportTable("Provenance", ["what", "value"], rows)


def settings(study: Study) -> ReportTable:
    """The study file, resolved, one row a setting."""
    rows = [[key, str(value)] for key, value in _leaves(study.model_dump(mode="json"), "")]
    return ReportTable("Every setting", ["setting", "value"], rows)


def _leaves(tree: Mapping[str, object], path: str) -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, place)
        else:
            yield place, value

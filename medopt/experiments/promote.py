"""A version becomes the champion: only what both verdicts passed, compared with the present one on the same cases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, DataError, ReleaseRefused
from medopt.core.files import file_digest
from medopt.evaluation.comparison import Comparison
from medopt.evaluation.shadow_trial import ShadowReport
from medopt.experiments.change_plan import ChangePlan, outside, outside_trial, read_plan, record_decision
from medopt.experiments.compare import compare_runs
from medopt.release.layout import SUMS
from medopt.release.signature import TRUST, check_trusted
from medopt.tracking.fetch import fetch_release
from medopt.tracking.registry import Registry, who


@dataclass(frozen=True, slots=True)
class Promoted:
    """What was done: the champion now and until now, and how they compare; `compared` None where they were not.

    `trial` is the shadow trial that was given as evidence.
    """

    version: str
    before: str | None
    compared: Comparison | None
    trial: ShadowReport | None = None


def promote(
    registry: Registry,
    name: str,
    version: str,
    reason: str,
    *,
    uncompared: bool = False,
    plan: Path | None = None,
    new_plan: bool = False,
    record: Path | None = None,
    shadow: Path | None = None,
) -> Promoted:
    """Make a version the champion and write down who, when, why, and the comparison with the champion until now.

    Both are compared on the test cases that they share. `plan` is the change control plan that the version has to keep;
    a champion that was promoted by a plan is followed only by a version that keeps the same one, or, with `new_plan`,
    another. Every decision by a plan is added to the record of the folder `record`. `shadow` is the report of a shadow
    trial of this version beside the champion, which is kept beside the comparison. Raises ReleaseRefused for what a
    verdict did not pass and for what lies outside the plan, ConfigError where the two cannot be compared and
    `uncompared` does not allow that.
    """
    if not reason.strip():
        raise ConfigError("A promotion takes a reason, in words that a colleague understands next year: --reason TEXT.")
    _refuse_unsigned(registry, name, version)
    chosen, champion = registry.passed(name, version), registry.champion(name)
    if champion == version:
        raise ConfigError(f"Version {version} of {name} is the champion already.")
    planned = _planned(registry, name, champion, plan, new_plan)
    trial = None if shadow is None else _trial(registry, name, version, champion, shadow)
    if champion is None:
        _keep_plan(registry, name, version, planned, record, reason)
        registry.promote(name, version, reason, "there was no champion before")
        return Promoted(version, None, None)
    with TemporaryDirectory() as folder:
        try:
            runs = [
                registry.tables(run_id, Path(folder) / place)
                for place, run_id in (
                    (f"champion, version {champion}", registry.run_of(name, champion)),
                    (f"version {version}", chosen.run_id or ""),
                )
            ]
            compared = compare_runs(runs, shared=True)
            studies = [load_study(run / "study.yaml") for run in runs]
        except (DataError, ConfigError) as error:
            if not uncompared:
                raise ConfigError(
                    f"Version {version} of {name} cannot be compared with the champion, version {champion}: {error} To "
                    "promote it all the same, add --uncompared; the registry then says so."
                ) from None
            _refuse_outside(planned, [], None, name, version, record, trial)
            _note_trial(registry, name, version, trial)
            registry.promote(name, version, reason, f"not compared with version {champion}: {error}")
            return Promoted(version, champion, None, trial)
    _refuse_outside(planned, studies, compared, name, version, record, trial)
    _keep_plan(registry, name, version, planned, record, reason, shadow)
    _note_trial(registry, name, version, trial)
    registry.promote(name, version, reason, comparison_tag(compared))
    return Promoted(version, champion, compared, trial)


def _trial(registry: Registry, name: str, version: str, champion: str | None, path: Path) -> ShadowReport:
    """The report of a shadow trial; raises ConfigError where it is not of this version beside the champion."""
    try:
        report = ShadowReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The shadow report {path} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise ConfigError(f"{path} was not written by `medopt shadow report --out FILE.json`.") from None
    if champion is None:
        raise ConfigError(f"{name} has no champion that a shadow trial could have been beside: leave --shadow out.")
    for what, number, given in (
        ("candidate", version, report.candidate),
        ("present release", champion, report.present),
    ):
        with TemporaryDirectory() as folder:
            place = fetch_release(f"models:/{name}/{number}", registry.uri, Path(folder)).place
            digest = file_digest(place / SUMS)
        if digest != given.digest:
            raise ConfigError(
                f"The {what} of the shadow report {path} is the release {given.digest[:16]} of {given.created}, and "
                f"version {number} of {name} is {digest[:16]}. Give the report of a trial of these two."
            )
    return report


def _note_trial(registry: Registry, name: str, version: str, trial: ShadowReport | None) -> None:
    if trial is not None:
        registry.note_trial(name, version, trial_tag(trial))


def trial_tag(trial: ShadowReport) -> str:
    """A shadow trial's overall figures as JSON, short enough for a tag of the registry."""
    overall = trial.overall
    content = {
        "node": trial.node, "since": trial.since, "until": trial.until, "studies": trial.studies,
        "patients": overall.patients, "scans": overall.scans,
        "agreement": [overall.agreement.value, overall.agreement.low, overall.agreement.high],
        "declined": [overall.declined.difference.value, overall.declined.difference.low,
                     overall.declined.difference.high],
    }  # fmt: skip
    return json.dumps(content, sort_keys=True)


def _planned(
    registry: Registry, name: str, champion: str | None, path: Path | None, is_new: bool
) -> tuple[ChangePlan, str] | None:
    """The plan that binds this promotion; raises ConfigError where the champion's is missing or is another."""
    before = registry.plan_of(name, champion) if champion else ""
    if path is None:
        if before:
            raise ConfigError(
                f"The champion of {name}, version {champion}, was promoted by a change plan ({before[:16]}): give it "
                "with --plan PLAN.yaml."
            )
        return None
    plan, digest = read_plan(path)
    if plan.model != name:
        raise ConfigError(f"The change plan {path} is of the model {plan.model}, not of {name}.")
    if before and digest != before and not is_new:
        raise ConfigError(
            f"The change plan {path} ({digest[:16]}) is not the champion's ({before[:16]}). A change of the plan is a "
            "decision of its own: say why in --reason, and add --new-plan."
        )
    return plan, digest


def _refuse_outside(
    planned: tuple[ChangePlan, str] | None,
    studies: Sequence[Study],
    compared: Comparison | None,
    name: str,
    version: str,
    record: Path | None,
    trial: ShadowReport | None,
) -> None:
    """Raise ReleaseRefused with all that lies outside the plan, after it was recorded."""
    if planned is None:
        return
    plan, digest = planned
    faults = outside(plan, studies[0], studies[1], compared) if studies else ["it is not compared with the champion"]
    faults += outside_trial(plan, trial)
    if faults:
        if record is not None:
            record_decision(record, "refused", model=name, version=version, plan=digest, because=faults)
        raise ReleaseRefused(f"Version {version} of {name} lies outside its change plan: {'; '.join(faults)}.")


def _keep_plan(
    registry: Registry,
    name: str,
    version: str,
    planned: tuple[ChangePlan, str] | None,
    record: Path | None,
    reason: str,
    shadow: Path | None = None,
) -> None:
    """Write down by which plan a version is promoted, first in the record: what is not recorded is not promoted."""
    if planned is None:
        return
    if record is not None:
        evidence = {} if shadow is None else {"shadow": file_digest(shadow)}
        record_decision(
            record, "promoted", model=name, version=version, plan=planned[1], by=who(), reason=reason, **evidence
        )
    registry.note_plan(name, version, planned[1])


def _refuse_unsigned(registry: Registry, name: str, version: str) -> None:
    """Raise ReleaseError for a version without a trusted signature, where MEDOPT_TRUST asks for one."""
    if os.environ.get(TRUST):
        with TemporaryDirectory() as folder:
            check_trusted(fetch_release(f"models:/{name}/{version}", registry.uri, Path(folder)).place)


def comparison_tag(compared: Comparison) -> str:
    """The overall differences of a comparison as JSON, short enough for a tag of the registry."""
    (run,) = compared.runs
    counts = compared.model_dump(include={"cases", "patients", "split"})
    figures = {
        name: figure.model_dump(mode="json", exclude_defaults=True, include={"difference", "p"})
        for name, figure in run.figures.by_name().items()
    }
    return json.dumps(counts | figures, sort_keys=True)

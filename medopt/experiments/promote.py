"""A version becomes the champion: only what both verdicts passed, compared with the present one on the same cases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, DataError, ReleaseRefused
from medopt.evaluation.comparison import Comparison
from medopt.experiments.change_plan import ChangePlan, outside, read_plan, record_decision
from medopt.experiments.compare import compare_runs
from medopt.release.signature import TRUST, check_trusted
from medopt.tracking.fetch import fetch_release
from medopt.tracking.registry import Registry, who


@dataclass(frozen=True, slots=True)
class Promoted:
    """What was done: the champion now and until now, and how they compare; `compared` None where they were not."""

    version: str
    before: str | None
    compared: Comparison | None


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
) -> Promoted:
    """Make a version the champion and write down who, when, why, and the comparison with the champion until now.

    Both are compared on the test cases that they share. `plan` is the change control plan that the version has to keep;
    a champion that was promoted by a plan is followed only by a version that keeps the same one, or, with `new_plan`,
    another. Every decision by a plan is added to the record of the folder `record`. Raises ReleaseRefused for what a
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
            _refuse_outside(planned, [], None, name, version, record)
            registry.promote(name, version, reason, f"not compared with version {champion}: {error}")
            return Promoted(version, champion, None)
    _refuse_outside(planned, studies, compared, name, version, record)
    _keep_plan(registry, name, version, planned, record, reason)
    registry.promote(name, version, reason, comparison_tag(compared))
    return Promoted(version, champion, compared)


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
) -> None:
    """Raise ReleaseRefused with all that lies outside the plan, after it was recorded."""
    if planned is None:
        return
    plan, digest = planned
    faults = outside(plan, studies[0], studies[1], compared) if studies else ["it is not compared with the champion"]
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
) -> None:
    """Write down by which plan a version is promoted, first in the record: what is not recorded is not promoted."""
    if planned is None:
        return
    if record is not None:
        record_decision(record, "promoted", model=name, version=version, plan=planned[1], by=who(), reason=reason)
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

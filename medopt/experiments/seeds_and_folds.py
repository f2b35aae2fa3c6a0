"""Several runs of a study, or of several: seeds and folds as independent jobs, and what they say together.

Each member is an ordinary run with a folder of its own: it goes on where it was, and is skipped where it is done. The
group has a folder and an MLflow run above theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from medopt.config import Study
from medopt.core.errors import ConfigError, MedoptError
from medopt.core.jobs import Fleet, Job, Outcome, connected, refuse_failures, run_jobs
from medopt.core.provenance import digest
from medopt.core.records import Override
from medopt.core.reporter import Reporter
from medopt.experiments.ensemble import build_ensemble
from medopt.experiments.group_summary import FinishedGroup, member_name, record_group
from medopt.experiments.run_group import RunGroup, open_group
from medopt.pipeline.fill_cache import fill_cache
from medopt.pipeline.finished_run import FinishedRun
from medopt.pipeline.run import run_study
from medopt.pipeline.study_cases import StudyCases, read_source

Finished = FinishedRun | FinishedGroup


@dataclass(frozen=True, slots=True)
class Plan:
    """A study, how many seeds from its own on, and how many folds (0: the manifest's own validation)."""

    study: Study
    study_file: Path
    seeds: int = 1
    folds: int = 0
    ensemble: bool = False
    override: Override | None = None
    """Who releases the ensemble, or the single run, although a verdict did not pass it."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.folds < 0 or self.folds == 1:
            raise ConfigError(
                f"--seeds takes 1 or more and --folds 2 or more; got --seeds {self.seeds} --folds {self.folds}."
            )
        if self.folds and self.study.data.folds:
            raise ConfigError(
                f"{self.study_file} has one of its folds chosen already (data.folds); leave it out there."
            )
        if self.ensemble and self.folds:
            raise ConfigError(
                "--ensemble and --folds exclude each other: each validation case was trained on by all members but "
                "one, so that nothing could choose the ensemble's temperature and operating point, or judge its int8 "
                "form. Build it of seeds: --seeds 5 --ensemble."
            )
        if self.ensemble and self.seeds < 2:
            raise ConfigError("--ensemble averages several members: give --seeds 2 or more.")

    def members(self) -> list[Study]:
        """The studies that are run, seed by seed and fold by fold."""
        raw = self.study.model_dump(mode="json")
        found = []
        for seed in range(self.study.seed, self.study.seed + self.seeds):
            for fold in range(self.folds or 1):
                data = raw["data"] | ({"folds": self.folds, "fold": fold} if self.folds else {})
                found.append(Study.model_validate(raw | {"seed": seed, "data": data}))
        return found

    def place(self, source: StudyCases, runs: Path) -> Path:
        """The folder of the group."""
        what = {"study": self.study.digest(), "manifest": source.digest, "seeds": self.seeds, "folds": self.folds}
        return runs / self.study.name / f"fleet-{digest(what)[:8]}"


def run_member(
    reporter: Reporter,
    study: Study,
    study_file: Path,
    data: Path,
    runs: Path,
    parent: str,
    override: Override | None = None,
) -> FinishedRun:
    """One job: an ordinary run below the group's, or one of its own, which alone takes an override."""
    return run_study(study, study_file, data, runs, reporter, parent=parent, override=override)


def run_plans(plans: Sequence[Plan], data: Path, runs: Path, fleet: Fleet, reporter: Reporter) -> list[Finished]:
    """Run all members of all plans as jobs; the end of each plan: a group's, or that of a single run.

    A member that fails stops no other; their groups are recorded, and the failures are raised together at the end.
    """
    sources = [read_source(plan.study, plan.study_file, data, runs) for plan in plans]
    data, runs = data.resolve(), runs.resolve()
    with connected(fleet), ExitStack() as stack:
        groups = [_opened(stack, plan, source, runs) for plan, source in zip(plans, sources, strict=True)]
        if fleet.engine == "ray":  # once for all members, each of which would decode the same images
            for source in sources:
                fill_cache(source, runs, fleet, reporter)
        jobs, owner = _jobs(plans, groups, data, runs)
        outcomes = {outcome.job.name: outcome for outcome in run_jobs(jobs, fleet, reporter, len(jobs), "runs")}
        finished = []
        for number, (plan, source, group) in enumerate(zip(plans, sources, groups, strict=True)):
            mine = [outcomes[job.name] for job in jobs if owner[job.name] == number]
            if (end := _recorded(plan, source, group, mine, runs, reporter)) is not None:
                finished.append(end)
        refuse_failures([outcomes[job.name] for job in jobs], "runs")
    return finished


def _opened(stack: ExitStack, plan: Plan, source: StudyCases, runs: Path) -> RunGroup | None:
    """The group of a plan with several members."""
    if plan.seeds * max(1, plan.folds) == 1:
        return None
    tags = {"study": plan.study.name, "seeds": str(plan.seeds), "folds": str(plan.folds), "kind": "seeds and folds"}
    tags["manifest_digest"] = source.digest
    return stack.enter_context(open_group(plan.place(source, runs), plan.study, runs, tags))


def _jobs(
    plans: Sequence[Plan], groups: Sequence[RunGroup | None], data: Path, runs: Path
) -> tuple[list[Job], dict[str, int]]:
    """All members of all plans, and which plan each belongs to."""
    jobs, owner = [], {}
    for number, (plan, group) in enumerate(zip(plans, groups, strict=True)):
        parent = group.parent.run_id if group else ""
        for study in plan.members():
            name = f"{study.name}, {member_name(study)}"
            if name in owner:
                raise ConfigError(f"Two of the study files have the name {study.name}: give each a name of its own.")
            override = None if group else plan.override
            jobs.append(Job(name, run_member, (study, plan.study_file.resolve(), data, runs, parent, override)))
            owner[name] = number
    return jobs, owner


def _recorded(
    plan: Plan, source: StudyCases, group: RunGroup | None, outcomes: Sequence[Outcome], runs: Path, reporter: Reporter
) -> Finished | None:
    """What a plan came to, recorded in its group; None where a member is missing."""
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failed:
        if group is not None:
            group.end(type(failed[0]).__name__, "FAILED")
        return None
    if group is None:
        single: FinishedRun = outcomes[0].result
        return single
    members: list[FinishedRun] = [outcome.result for outcome in outcomes]
    finished = record_group(plan.study, plan.members(), members, group)
    if plan.ensemble:
        try:
            folders = [member.folder for member in members]
            ensemble = build_ensemble(source, folders, group, runs, reporter, plan.override)
            finished = replace(finished, ensemble=ensemble)
        except MedoptError as error:
            group.end(type(error).__name__, "FAILED")
            raise
    group.end("done")
    return finished

"""`medopt run`: a study from its scans to a release; with seeds or folds, several runs and what they say together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import (
    CpusOption,
    DataOption,
    DevicesOption,
    GpusOption,
    JsonOption,
    NodesOption,
    OverrideOption,
    OverrideReason,
    RunsOption,
    SetOption,
    Strategy,
    StrategyOption,
    StudyFiles,
    WhereOption,
    named_override,
)
from medopt.cli.places import study_data
from medopt.core.errors import ConfigError, ReleaseRefused, listed
from medopt.core.format import count_text

if TYPE_CHECKING:
    from medopt.config import Study, Training
    from medopt.core.jobs import Fleet
    from medopt.core.records import Override
    from medopt.experiments.group_summary import FinishedGroup
    from medopt.experiments.seeds_and_folds import Plan
    from medopt.pipeline.finished_run import FinishedRun
    from medopt.training.hardware import Hardware


def run(
    study_files: StudyFiles,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds to run, starting with the study's own.")] = 1,
    folds: Annotated[
        int,
        typer.Option(
            "--folds",
            help="Cross-validate: divide train and val by patient into this many folds. The test split stays.",
        ),
    ] = 0,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="With --seeds: one more release, the mean of all members.")
    ] = False,
    where: WhereOption = "local",
    job_cpus: CpusOption = 1,
    job_gpus: GpusOption = None,
    devices: DevicesOption = 0,
    nodes: NodesOption = 1,
    strategy: StrategyOption = Strategy.ddp,
    as_json: JsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved study and the plan, do nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on with the same run.")] = False,
    override_by: OverrideOption = "",
    reason: OverrideReason = "",
) -> None:
    """Take a study's scans to a checked int8 release, all of it in MLflow.

    Interrupted or killed, the same command goes on where it was. A run whose inputs are unchanged is not repeated.
    With --seeds or --folds each member is such a run; above them stands one with the mean and its interval. With
    --ensemble an --override is of the ensemble alone.

    Example: medopt run busi --seeds 3 --folds 5 --on ray

    One model on several GPUs: medopt run STUDY --devices 4, or torchrun --nproc-per-node 4 -m medopt run STUDY, or
    srun medopt run STUDY.
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study

    paths = [study_path(study_file) for study_file in study_files]
    studies = [(load_study(path, overrides), path) for path in paths]
    folders = [study_data(study, path, data) for study, path in studies]
    if dry_run:
        _show_plan(studies, folders, runs, as_json)
        return
    from medopt.core.jobs import Fleet
    from medopt.experiments.seeds_and_folds import Plan
    from medopt.training.hardware import Hardware

    fleet = Fleet(where, job_cpus, job_gpus)
    override = named_override(override_by, reason)
    plans = [Plan(study, path, seeds, folds, ensemble, override) for study, path in studies]
    several = len(plans) > 1 or len(plans[0].members()) > 1
    if fresh and (several or where != "local"):
        raise ConfigError(
            "--fresh starts one run anew; with several runs, or on a cluster, remove their folders instead."
        )
    if override and several and not (ensemble and len(plans) == 1):
        raise ConfigError(
            "--override NAME is for one model: a run, or with --ensemble the ensemble. Give one study, without --seeds "
            "or --folds."
        )
    hardware = Hardware.detect(devices, nodes, strategy.value)
    if several and (hardware.devices > 1 or hardware.nodes > 1):
        raise ConfigError(
            "Several devices train one model; --seeds, --folds and several studies are jobs of their own. Run these "
            "with --on ray and --job-gpus, or one of them with --devices."
        )
    if not several and _helped(plans[0].study.training, hardware):
        return
    finished = _run(plans, folders, runs, fleet, fresh, hardware, override)
    for end in finished:
        _print(end)
    summaries = [end.summary() for end in finished]
    print_json(as_json, {"runs": summaries} if len(study_files) > 1 else summaries[0])
    refuse_unreleased(finished)


def _helped(training: Training, hardware: Hardware) -> bool:
    """Whether a launcher started this process to help another one, which it then has done."""
    from medopt.training.launch import LostProcess, follow, follows

    if not follows(training, hardware):
        return False
    try:
        follow(training, hardware)
    except LostProcess as error:  # the first process reports it
        raise typer.Exit(error.exit_code) from None
    return True


def _run(
    plans: Sequence[Plan],
    folders: Sequence[Path],
    runs: Path,
    fleet: Fleet,
    fresh: bool,
    hardware: Hardware,
    override: Override | None,
) -> list[FinishedRun | FinishedGroup]:
    """One run in this process, or several as jobs; those with the same data folder are one group of jobs."""
    from medopt.experiments.seeds_and_folds import run_plans
    from medopt.pipeline.run import run_study

    with reporting() as reporter:
        if fleet.engine == "local" and len(plans) == 1 and len(plans[0].members()) == 1:
            (plan,) = plans
            return [run_study(plan.study, plan.study_file, folders[0], runs, reporter, fresh, "", hardware, override)]
        finished: dict[int, FinishedRun | FinishedGroup] = {}
        for folder in dict.fromkeys(folders):
            places = [place for place, other in enumerate(folders) if other == folder]
            ends = run_plans([plans[place] for place in places], folder, runs, fleet, reporter)
            finished.update(zip(places, ends, strict=True))
        return [finished[place] for place in range(len(plans))]


def _print(finished: FinishedRun | FinishedGroup) -> None:
    from medopt.cli.console import print_summary
    from medopt.cli.group_tables import print_members
    from medopt.pipeline.finished_run import FinishedRun

    if isinstance(finished, FinishedRun):
        print_summary(finished)
        return
    print_members(finished)
    if finished.ensemble:
        print_summary(finished.ensemble, name="ensemble")


def refuse_unreleased(finished: Sequence[FinishedRun | FinishedGroup]) -> None:
    """Raise ReleaseRefused (exit code 5) if a verdict did not pass a run and nobody overrode that.

    All runs, ensembles and members without a release are named, with what helps these and no others. Whoever answers
    for an ensemble by name also answers for the networks that it averages.
    """
    from medopt.pipeline.finished_run import FinishedRun

    groups = [end for end in finished if not isinstance(end, FinishedRun)]
    runs = [end for end in finished if isinstance(end, FinishedRun) and not end.metrics.is_released]
    ensembles = [one.ensemble for one in groups if one.ensemble and not one.ensemble.metrics.is_released]
    alone = [group for group in groups if not (group.ensemble and group.ensemble.metrics.gate.override)]
    members = [member for group in alone for member in group.metrics.members if not member.is_released]
    texts = [f"{run.metrics.study} is not released: {_why(run)}." for run in runs]
    texts += [f"The ensemble of {run.metrics.study} is not released: {_why(run)}." for run in ensembles]
    if members:
        named = listed([f"{member.folder} ({member.outcome})" for member in members])
        verb = "has" if len(members) == 1 else "have"
        texts.append(f"{count_text(len(members), 'member')} {verb} no release: {named}; metrics.json has the reasons.")
    if not texts:
        return
    gates = [run.metrics.gate.outcome for run in (*runs, *ensembles)]
    texts += _gate_hints([*gates, *(member.outcome for member in members if not member.gate_passed)])
    if runs or ensembles:
        single = "" if len(finished) == 1 else " (give that study alone)"
        texts.append(
            "A person who takes responsibility for the model can release it all the same: --override NAME --reason "
            f"TEXT{single}."
        )
    raise ReleaseRefused(" ".join(texts))


def _gate_hints(outcomes: Sequence[str]) -> Iterator[str]:
    """What helps where the gate did not pass int8; `outcomes` are the gate's, or those of members that it stopped."""
    if any(outcome != "passed" for outcome in outcomes):
        yield (
            "The same command trains nothing again and judges int8 anew, as for a machine that was busy; the limits of "
            "the gate: compression.gate in the study file."
        )
    if any("cannot tell" in outcome for outcome in outcomes):
        yield (
            "Where the cases are too few to tell, add validation patients, or set bounds that you can defend "
            "(compression.gate.auc_bound, compression.gate.flips_bound)."
        )


def _why(run: FinishedRun) -> str:
    """The reasons, and where to look."""
    reasons = listed(list(run.metrics.refusals))
    return f"{reasons}. The models and all figures are in {run.folder}; there is no release"


def _show_plan(studies: Sequence[tuple[Study, Path]], folders: Sequence[Path], runs: Path, as_json: bool) -> None:
    import yaml

    from medopt.pipeline.plan import plan_run

    plans = []
    for (study, path), folder in zip(studies, folders, strict=True):
        plan = asdict(plan_run(study, path, folder, runs))
        resolved = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
        typer.echo(f"{resolved}\n# the plan\n{yaml.safe_dump(plan, sort_keys=False)}".rstrip())
        plans.append({"study": study.model_dump(mode="json"), "plan": plan})
    print_json(as_json, {"studies": plans} if len(plans) > 1 else plans[0])

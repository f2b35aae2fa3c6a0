"""What a run would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medopt.config import Study
from medopt.core.records import SPLITS
from medopt.pipeline.run_folder import RunFolder, find_run
from medopt.pipeline.stage_settings import ANALYSES, settings_digest, stage_names, trains_from_baseline
from medopt.pipeline.study_cases import read_source
from medopt.transforms.prepare import PrepareChain


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run would do: cases by split, its folder, each stage "done" or "to do", the chain's fingerprint."""

    cases: dict[str, int]
    folder: str
    stages: dict[str, str]
    chain: str


def plan_run(study: Study, study_file: Path, data: Path, runs: Path) -> RunPlan:
    """The cases of a study, the folder of its run, and which stages are done already.

    Preparing is no stage of a run: what was prepared is kept for all runs, and looked up by content.
    """
    cases = read_source(study, study_file, data, runs)
    study = cases.study
    folder = find_run(runs, study, cases.training_digest)
    done = done_stages(study, RunFolder(folder, False)) if folder else set()
    return RunPlan(
        cases={split: sum(case.split == split for case in cases.cases) for split in SPLITS},
        folder=str(folder) if folder else f"a new one below {runs / study.name}",
        stages={stage: "done" if stage in done else "to do" for stage in stage_names(study)},
        chain=PrepareChain(study.prepare).fingerprint,
    )


def done_stages(study: Study, folder: RunFolder) -> set[str]:
    """The stages whose settings are as they were when they ran, and none of whose inputs is to be made anew.

    Whether the files of a stage are untouched is looked at when the run goes on.
    """
    done: set[str] = set()
    pending = False  # a stage that all later ones depend on, but for those that only measure
    for stage in stage_names(study):
        record = folder.record(stage)
        is_old = record is not None and not record.settings and stage in ("tune", "train")  # of version 0.1.0
        is_current = record is not None and (is_old or record.settings == settings_digest(study, stage))
        blocked = pending or (stage == "evaluate" and "baseline" not in done)
        if is_current and not blocked and (stage in ANALYSES or not _measures_anew(study, done, stage)):
            done.add(stage)
        elif stage not in ANALYSES and (stage != "baseline" or trains_from_baseline(study)):
            pending = True
    return done


def _measures_anew(study: Study, done: set[str], stage: str) -> bool:
    """Whether a stage that takes all figures comes after a measurement that is to be made anew."""
    names = stage_names(study)
    return names.index(stage) > names.index(ANALYSES[0]) and any(name not in done for name in names if name in ANALYSES)

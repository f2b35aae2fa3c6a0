"""Which process writes a run, so that one that was killed does not stay RUNNING for ever."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil
from mlflow import MlflowClient, MlflowException

from medopt.tracking.store import every_run

PROCESS = "mlflow.medopt.process"  # host, boot, process namespace, id, start; MLflow's pages hide such a tag


def this_process() -> str:
    """What tells this process from every other one: one of the same number after it, too."""
    return " ".join((*_place(), str(os.getpid()), _start(os.getpid())))


def mark_crashed(client: MlflowClient) -> list[str]:
    """Close as FAILED the runs whose process on this machine is gone; their names.

    What runs elsewhere, and in another container of this machine, is not known here and left alone. A run that is gone
    on with becomes RUNNING again.
    """
    found = []
    experiments = [one.experiment_id for one in client.search_experiments()]
    for run in every_run(client, experiments, "attributes.status = 'RUNNING'") if experiments else ():
        if is_dead(run.data.tags.get(PROCESS, "")):
            with suppress(MlflowException):  # of somebody else, who does not let us
                client.set_tag(run.info.run_id, "outcome", "crashed")
                client.set_terminated(run.info.run_id, "FAILED")
                found.append(str(run.info.run_name))
    return found


def is_dead(tag: str) -> bool:
    """Whether the process of this tag is known to be gone."""
    host, boot, space, number, start = [*tag.split(" "), *[""] * 5][:5]
    here = _place()
    if host != here[0] or not number.isdigit():
        return False
    if boot != here[1]:
        return bool(boot and here[1])  # the machine was started anew
    return space == here[2] and _start(int(number)) != start


def _place() -> tuple[str, str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:  # no Linux: the machine's start stands for both
        boot, space = str(int(psutil.boot_time())), "-"
    return platform.node().replace(" ", "_") or "-", boot, space


def _start(number: int) -> str:
    """When a process was started, '' where there is none."""
    try:
        process = psutil.Process(number)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""

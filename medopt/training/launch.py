"""Training on one process or on several: the first leads and sends the others their job; they hold nothing else.

The others are started by torchrun or SLURM, or here. All of them read and write the run's folder, which several nodes
have to share.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from medopt.config import Training
from medopt.core import signals
from medopt.core.errors import MedoptError, TrainingError
from medopt.training.hardware import Hardware, open_fabric
from medopt.training.job import Trained, TrainingCallbacks, TrainingJob
from medopt.training.loop import fit

_LOST = ("gloo", "nccl", "connection", "peer", "socket", "broken pipe")  # how a backend names a process that is gone


class LostProcess(TrainingError):
    """Another process of this training is gone."""


def train(job: TrainingJob, callbacks: TrainingCallbacks, hardware: Hardware | None = None) -> Trained:
    """Train, or go on training, and return the best weights and the history.

    Raises TrainingError where the loss is not a number, no epoch gave a defined metric, or a process was lost: then
    the same command goes on at the last whole epoch.
    """
    hardware = hardware or Hardware(1)
    fabric = open_fabric(job.study.training, hardware)
    if fabric.world_size == 1:
        return fit(job, fabric, callbacks)
    with _joined_processes(fabric, job.study.training, hardware):
        fabric.broadcast(job)
        return fit(job, fabric, callbacks)


def follows(training: Training, hardware: Hardware) -> bool:
    """Whether this process was started to help another one that leads."""
    return open_fabric(training, hardware).global_rank > 0


def follow(training: Training, hardware: Hardware) -> None:
    """Wait for the leading process, train what it sends, and return when it is done.

    Raises LostProcess where another process went away, and the MedoptError of what this one could not do.
    """
    fabric = open_fabric(training, hardware)
    with _joined_processes(fabric, training, hardware):
        job = cast(TrainingJob | None, fabric.broadcast(None))
        if job is not None:
            fit(job, fabric, None)


def dismiss(training: Training, hardware: Hardware) -> None:
    """Let processes go that torchrun, SLURM or a person started and that wait for a job: there is none."""
    fabric = open_fabric(training, hardware)
    if fabric.world_size > 1 and (hardware.nodes > 1 or not _starts_others(fabric)):
        with _joined_processes(fabric, training, hardware):
            fabric.broadcast(None)


def _starts_others(fabric: Fabric) -> bool:
    """Whether the other processes of this node are ours to start: no launcher did."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process is gone; its connection breaks a moment before its end can be seen."""
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def _joined_processes(fabric: Fabric, training: Training, hardware: Hardware) -> Iterator[None]:
    """Start this node's other processes where no launcher did, and hold all of them together until the block ends."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    before = dict(os.environ)
    others = _start_others(fabric, training, hardware) if _starts_others(fabric) else []
    try:
        fabric.launch()
        yield
        torch.distributed.barrier()
    except (RuntimeError, torch.distributed.DistError) as error:
        if not any(word in str(error).lower() for word in _LOST):
            raise
        ended = [str(number) for number, other in enumerate(others, start=1) if _has_ended(other)]
        who = f"process {', '.join(ended)} of this node" if ended else "a process"
        raise LostProcess(
            f"Training stopped: {who} of {fabric.world_size} went away (killed, out of memory, or its machine lost). "
            "Nothing is lost: the same command goes on at the last whole epoch."
        ) from error
    except BaseException:
        for other in others:
            other.kill()
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for other in others:
            _end(other)
        os.environ.clear()
        os.environ.update(before)


def _start_others(fabric: Fabric, training: Training, hardware: Hardware) -> list[subprocess.Popen[bytes]]:
    """Start this node's processes but the first, and say in the environment who they are, as Lightning reads it."""
    devices = fabric.world_size // hardware.nodes
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(find_free_network_port()))
    os.environ.setdefault("NODE_RANK", "0")
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(devices * hardware.nodes)}
    words = [training.accelerator, training.precision, devices, hardware.nodes, hardware.strategy]
    command = [sys.executable, "-m", "medopt.training.launch", *map(str, words)]
    # A session of its own: Ctrl-C is for the first process, and when that goes the others notice.
    return [
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}, start_new_session=True)
        for rank in range(1, devices)
    ]


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(words: list[str]) -> int:
    """Help with the accelerator, precision, devices, nodes and strategy that the words name; the exit code.

    What stops all processes is told by the first of them, and only what this one alone knows is told here.
    """
    accelerator, precision, devices, nodes, strategy = words
    training = Training.model_validate({"accelerator": accelerator, "precision": precision})
    hardware = Hardware(int(devices), int(nodes), "fsdp" if strategy == "fsdp" else "ddp")
    signals.install_handlers()
    try:
        follow(training, hardware)
    except TrainingError as error:
        return error.exit_code
    except MedoptError as error:
        sys.stderr.write(f"{type(error).__name__} in a helping process: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

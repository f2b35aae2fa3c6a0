"""The device, the precision and the processes of a training, over Lightning Fabric."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from medopt.config import Training
from medopt.core.errors import ConfigError
from medopt.models.bottleneck import BottleneckLayer
from medopt.training.xla import open_xla

PATIENCE = timedelta(hours=24)
"""How long processes wait for each other: the first one may have to prepare all images before the others are needed."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """How many processes train: `devices` on each of `nodes`; 0 devices means all GPUs, or one process on a CPU."""

    devices: int = 0
    nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    @classmethod
    def detect(cls, devices: int = 0, nodes: int = 1, strategy: Literal["ddp", "fsdp"] = "ddp") -> Hardware:
        """What torchrun or SLURM started this process with; where neither did, these."""
        if TorchElasticEnvironment.detect():
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            return cls(local, int(os.environ["WORLD_SIZE"]) // local, strategy)
        if SLURMEnvironment.detect():
            tasks, hosts = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
            return cls(max(1, tasks // hosts), hosts, strategy)
        return cls(devices, nodes, strategy)


def has_launcher() -> bool:
    """Whether torchrun or SLURM started this process, which then brought its helpers along for one training."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def open_fabric(training: Training, hardware: Hardware | None = None) -> Fabric:
    """Fabric for the configured accelerator and precision; raises ConfigError where this machine cannot do it."""
    hardware = hardware or Hardware(1)
    accelerator, precision = training.accelerator, training.precision
    if accelerator == "tpu":
        return open_xla(precision, hardware.devices * hardware.nodes)
    cuda = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "auto":
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32-true"
    devices = hardware.devices or (torch.cuda.device_count() if cuda else 1) or 1
    several = devices * hardware.nodes > 1
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=hardware.nodes,
            precision=precision,
            strategy=_strategy(hardware) if several else "auto",
        )
    except (RuntimeError, ValueError) as error:  # Fabric's own refusals are both
        raise ConfigError(
            f"Training on {accelerator} with {precision}, {devices} devices and {hardware.nodes} nodes is not possible "
            f"here ({' '.join(str(error).split())[:200]}). Let training.accelerator and training.precision be auto, "
            "and ask for no more --devices than there are."
        ) from error


def _strategy(hardware: Hardware) -> Any:
    if hardware.strategy == "ddp":
        return DDPStrategy(timeout=PATIENCE)
    return ModelParallelStrategy(shard, hardware.devices * hardware.nodes, 1, timeout=PATIENCE)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread a module's parameters over the processes (FSDP, Zhao et al. 2023), one group a residual block."""
    for part in module.modules():
        if isinstance(part, BottleneckLayer):
            fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module

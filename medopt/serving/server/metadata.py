"""What a server says about itself and its releases: names, versions, inputs and outputs, whether they serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from medopt import __version__
from medopt.core.records import has_one_output
from medopt.serving.server.inputs import ReleaseInputs
from medopt.serving.server.limits import Refused
from medopt.serving.server.releases import ReleaseState
from medopt.serving.server.service import (
    DECISION,
    DECLINED,
    IMAGE,
    LOGITS,
    MISSING,
    NUMBER,
    PROBABILITIES,
    Service,
    identity,
)


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The server: name, version, extensions of the protocol."""

    name: str = "medopt"
    version: str = __version__
    extensions: tuple[str, ...] = ("model_repository", "binary_tensor_data")


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output; a side of -1 has no fixed length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """One release: what it takes and gives, and its state in every folder that has it.

    `parameters` holds the hashes of release, model and chain; like inputs and outputs it is empty where none serves.
    """

    name: str
    versions: tuple[str, ...]
    releases: tuple[ReleaseState, ...]
    platform: str = "medopt"
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()
    parameters: dict[str, str] | None = None


def model_ready(service: Service, name: str, version: str = "") -> bool:
    """Whether a release serves. Raises Refused where there is none of that name or version."""
    try:
        service.registry.find(name, version)
    except Refused as refused:
        if refused.kind == "not_ready":
            return False
        raise
    return not service.stopping


def model_metadata(service: Service, name: str, version: str = "") -> ModelMetadata:
    """Inputs and outputs of a release with its hashes; of one that does not serve, the reason. Raises Refused."""
    folders = service.registry.named(name)
    versions = tuple(folder.version for folder in folders if folder.version)
    states = service.registry.states(name)
    if not version and not versions:
        return ModelMetadata(name, versions, states)
    served = service.registry.find(name, version)
    info = served.verified.release.info
    labels, inputs = len(info.labels), ReleaseInputs.of(info)
    return ModelMetadata(
        name,
        versions,
        states,
        inputs=(
            TensorMetadata(IMAGE, "FP32", (-1, info.prepare.input_channels, *info.prepare.size)),
            *(TensorMetadata(name, "BYTES", (-1,)) for name in (*inputs.files, *inputs.covariates)),
        ),
        outputs=(
            TensorMetadata(PROBABILITIES, "FP64", (-1, labels)),
            TensorMetadata(DECISION, "BYTES", (-1,)),
            TensorMetadata(DECLINED, "BYTES", (-1,)),
            TensorMetadata(LOGITS, "FP64", (-1, 1 if has_one_output(info.task) else labels)),
            *([TensorMetadata(NUMBER, "FP64", (-1, 3))] if info.number else []),
            *([TensorMetadata(MISSING, "BYTES", (-1,))] if info.covariates else []),
        ),
        parameters=identity(served) | {"question": info.question, "intended_use": info.intended_use},
    )


def refuse_unload(service: Service, name: str) -> NoReturn:
    """A client may not take a release out of service. Always raises Refused."""
    service.registry.named(name)
    raise Refused("malformed", "A release is taken out of service by starting the server without it.")

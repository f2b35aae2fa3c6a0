"""KServe's data plane and repository extension over the shelf: health, metadata, loading, for both doors.

KServe reads the command line when it is imported and takes what it knows of it; medopt's options have other names.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines on stderr are no JSON, and tell of clients
try:
    from kserve import ModelRepository
    from kserve.errors import ModelNotFound
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
except ModuleNotFoundError as error:
    from medopt.core.errors import ConfigError

    raise ConfigError(
        f"Serving needs {error.name}, which is not installed: pip install 'medopt[serve]'. medopt predict does without."
    ) from None

from medopt import __version__
from medopt.serving.server.limits import Refused
from medopt.serving.server.releases import ReleaseRegistry
from medopt.serving.server.service import DECISION, DECLINED, IMAGE, LOGITS, PROBABILITIES, SCAN, Service, identity

EXTENSIONS = ["model_repository", "binary_tensor_data"]


class Plane(DataPlane):
    """What KServe asks of a server's models, answered from the shelf."""

    def __init__(self, service: Service) -> None:
        super().__init__(ModelRepository())
        self._service, self._shelf = service, service.shelf

    def metadata(self) -> dict[str, Any]:
        """The server: name, version, extensions of the protocol."""
        return {"name": "medopt", "version": __version__, "extensions": EXTENSIONS}

    async def ready(self) -> bool:
        """Whether every release serves."""
        return self._service.ready

    async def model_ready(self, model_name: str, version: str = "") -> bool:
        """Whether a release serves; raises Refused where there is none of that name."""
        try:
            self._shelf.find(model_name, version)
        except Refused as refused:
            if refused.kind == "not_ready":
                return False
            raise
        return not self._service.stopping

    async def model_metadata(self, model_name: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs of a release with its hashes; of one that does not serve, the reason."""
        places = self._shelf.named(model_name)
        found = {
            "name": model_name,
            "versions": [place.version for place in places if place.version],
            "platform": "medopt",
            "inputs": [],
            "outputs": [],
            "releases": [one for one in self._shelf.reasons() if one["name"] == model_name],
        }
        if not version and not found["versions"]:
            return found
        served = self._shelf.find(model_name, version)
        info = served.checked.predictor.info
        shape, labels = [-1, info.prepare.channels, *info.prepare.size], len(info.labels)
        outputs = 1 if info.task == "binary" else labels
        return found | {
            "inputs": [_tensor(IMAGE, "FP32", shape), _tensor(SCAN, "BYTES", [-1])],
            "outputs": [
                _tensor(PROBABILITIES, "FP64", [-1, labels]),
                _tensor(DECISION, "BYTES", [-1]),
                _tensor(DECLINED, "BYTES", [-1]),
                _tensor(LOGITS, "FP64", [-1, outputs]),
            ],
            "parameters": identity(served) | {"question": info.question, "intended_use": info.intended_use},
        }


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


class Repository(ModelRepositoryExtension):
    """The repository extension: what is there, and a release read again from the folder that the server was told of."""

    def __init__(self, shelf: ReleaseRegistry) -> None:
        super().__init__(ModelRepository())
        self._shelf = shelf

    async def index(self, filter_ready: bool | None = False) -> list[dict[str, str]]:
        """Every release with its state and the reason."""
        return [one for one in self._shelf.reasons() if one["state"] == "READY" or not filter_ready]

    async def load(self, model_name: str) -> None:
        """Raises Refused with the reason; what served before goes on then."""
        await self._shelf.reload(model_name)

    async def unload(self, model_name: str) -> None:
        """A client may not take a release out of service. Raises Refused."""
        self._shelf.named(model_name)
        raise Refused("malformed", "A release is taken out of service by starting the server without it.")


__all__ = ["ModelNotFound", "Plane", "Repository"]

"""The gRPC server: the protocol's v2 service with a key, TLS, limits, and scans that stay bytes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import grpc
import numpy as np

from medopt.serving.server.auth import Key
from medopt.serving.server.generated import open_inference_pb2 as pb
from medopt.serving.server.generated import open_inference_pb2_grpc as stubs
from medopt.serving.server.inputs import ReleaseInputs, Tensor
from medopt.serving.server.limits import GRPC, Refused
from medopt.serving.server.metadata import ServerMetadata, model_metadata, model_ready, refuse_unload
from medopt.serving.server.service import (
    IMAGE,
    InferenceRequest,
    InferenceResponse,
    RequestLog,
    Service,
    content_digest,
    log_refusal,
)
from medopt.serving.server.v2_codec import (
    OutputSelection,
    as_many,
    datatype,
    from_raw,
    known_id,
    known_output,
    malformed,
    to_raw,
)

Method = Callable[..., Awaitable[Any]]
_WITHOUT_KEY = ("ServerLive", "ServerReady")
_OVERHEAD = 1 << 16  # names and shapes beside the tensors


def server(service: Service, key: Key) -> grpc.aio.Server:
    """A gRPC server without a port yet. Calls above its maximum get RESOURCE_EXHAUSTED from gRPC itself."""
    max_message = service.limits.max_body + _OVERHEAD
    options = [("grpc.max_receive_message_length", max_message), ("grpc.max_send_message_length", max_message)]
    connections = service.limits.connections
    silent_seconds = connections.keep_alive_seconds + connections.header_seconds
    options += [
        ("grpc.max_connection_idle_ms", round(1000 * silent_seconds)),  # without a call in hand
        ("grpc.server_handshake_timeout_ms", round(1000 * connections.header_seconds)),
        ("grpc.max_allowed_incoming_connections", connections.total),
    ]
    calls = grpc.aio.server(options=options, maximum_concurrent_rpcs=service.limits.max_queue + 8)
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service, key), calls)
    return calls


def _guarded(method: Method) -> Method:
    """Ask for the key, and turn a refusal into gRPC's status; no exception's text goes out."""

    @functools.wraps(method)
    async def call(self: Servicer, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            if method.__name__ not in _WITHOUT_KEY:
                self.key.check({name: str(value) for name, value in context.invocation_metadata() or ()})
            return await method(self, request)
        except Refused as refused:
            log_refusal("grpc", refused)
            await context.abort(getattr(grpc.StatusCode, GRPC[refused.kind]), refused.text)

    return call


class Servicer(stubs.GRPCInferenceServiceServicer):
    """The calls of the protocol and of its repository extension."""

    def __init__(self, service: Service, key: Key) -> None:
        self._service, self.key = service, key

    @_guarded
    async def ServerMetadata(self, _: Any) -> Any:
        """The server's name, version and extensions."""
        return pb.ServerMetadataResponse(**asdict(ServerMetadata()))

    @_guarded
    async def ServerLive(self, _: Any) -> Any:
        """True while the process answers."""
        return pb.ServerLiveResponse(live=True)

    @_guarded
    async def ServerReady(self, _: Any) -> Any:
        """Whether every release serves."""
        return pb.ServerReadyResponse(ready=self._service.ready)

    @_guarded
    async def ModelReady(self, request: Any) -> Any:
        """Whether a release serves."""
        return pb.ModelReadyResponse(ready=model_ready(self._service, request.name, request.version))

    @_guarded
    async def ModelMetadata(self, request: Any) -> Any:
        """Inputs and outputs; REST gives the hashes and reasons, too."""
        metadata = asdict(model_metadata(self._service, request.name, request.version))
        fields = ("name", "versions", "platform", "inputs", "outputs")
        return pb.ModelMetadataResponse(**{field: metadata[field] for field in fields})

    @_guarded
    async def RepositoryIndex(self, request: Any) -> Any:
        """Every release, or those that are ready, with state and reason."""
        states = [asdict(state) for state in self._service.registry.states()]
        return pb.RepositoryIndexResponse(
            models=[state for state in states if state["state"] == "READY" or not request.ready]
        )

    @_guarded
    async def RepositoryModelLoad(self, request: Any) -> Any:
        """Read a release again from its folder; it takes over if it is sound."""
        name = _model_name(request)
        await self._service.registry.reload(name)
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    @_guarded
    async def RepositoryModelUnload(self, request: Any) -> Any:
        """Refused."""
        refuse_unload(self._service, _model_name(request))

    @_guarded
    async def ModelInfer(self, request: Any) -> Any:
        """Answer a request."""
        with self._service.logged("grpc") as log:
            return await self._infer(request, log)

    async def _infer(self, message: Any, log: RequestLog) -> Any:
        service = self._service
        served = service.registry.find(message.model_name, message.model_version)
        log.model, log.version = served.name, served.verified.version
        with service.admitted(1, message.ByteSize()):
            inputs = ReleaseInputs.of(served.verified.release.info)
            request, selection, log.digest = await service.in_reader(parse_message, message, inputs)
            response = await service.answer(served, request, log, taken=1)
        return write_message(response, selection, raw=bool(message.raw_input_contents))


def _model_name(request: Any) -> str:
    """KServe's and Triton's clients send it in different fields."""
    return str(request.triton_model_name or request.kserve_model_name)


def parse_message(message: Any, inputs: ReleaseInputs) -> tuple[InferenceRequest, OutputSelection, str]:
    """A ModelInferRequest, and the digest that stands for its content in the log. Raises Refused."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise malformed(f"Give raw_input_contents for every input, or for none: {inputs.text}.")
    tensors: list[tuple[str, Tensor]] = []
    for place, tensor in enumerate(message.inputs):
        if raw and tensor.contents.ByteSize():
            raise malformed("The input has typed contents and raw_input_contents: give one of them.")
        shape = [int(side) for side in tensor.shape]
        inputs.check(tensor.name, tensor.datatype, shape)
        values = from_raw(tensor.name, shape, raw[place]) if raw else _typed(tensor.name, shape, tensor.contents)
        tensors.append((tensor.name, values))
    outputs = {known_output(output.name): True for output in message.outputs}
    data = raw or [tensor.SerializeToString() for tensor in message.inputs]
    selection = OutputSelection(known_id(message.id), outputs)
    return inputs.request(tensors), selection, content_digest(*data)


def _typed(name: str, shape: Sequence[int], contents: Any) -> Tensor:
    """An input whose values are in the message's typed fields."""
    if name == IMAGE:
        return from_raw(name, shape, np.asarray(contents.fp32_contents, "<f4").tobytes())
    return as_many(name, tuple(contents.bytes_contents), shape)


def write_message(response: InferenceResponse, selection: OutputSelection, raw: bool) -> Any:
    """A ModelInferResponse: raw tensors for a client that sent raw ones, typed fields for others."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=selection.id)
    for key, value in response.parameters.items():
        message.parameters[key].string_param = value
    for name in selection.names(response.arrays):
        array = response.arrays[name]
        tensor = message.outputs.add(name=name, datatype=datatype(array), shape=list(array.shape))
        if raw:
            message.raw_output_contents.append(to_raw(array))
        elif array.dtype == object:
            tensor.contents.bytes_contents.extend(array.ravel().tolist())
        else:
            tensor.contents.fp64_contents.extend(array.ravel().tolist())
    return message

"""The gRPC door: KServe's v2 service with a key, TLS, limits, and scans that stay bytes."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs
from kserve.protocol.grpc.servicer import InferenceServicer

from medopt.serving.server.auth import Key
from medopt.serving.server.kserve_parts import Plane, Repository
from medopt.serving.server.limits import GRPC, Refused
from medopt.serving.server.service import (
    IMAGE,
    InferenceRequest,
    InferenceResponse,
    RequestLog,
    Service,
    content_digest,
)
from medopt.serving.server.v2_codec import (
    OutputSelection,
    check_input,
    datatype,
    from_raw,
    known_id,
    known_output,
    malformed,
    product,
    to_raw,
)

Method = Callable[..., Awaitable[Any]]
_OPEN = ("ServerLive", "ServerReady")
_OVERHEAD = 1 << 16  # names and shapes beside the tensors


def server(service: Service, plane: Plane, repository: Repository, key: Key) -> grpc.aio.Server:
    """A gRPC server without a port yet. What is above its number of calls gets RESOURCE_EXHAUSTED from gRPC itself."""
    most = service.limits.max_body + _OVERHEAD
    options = [("grpc.max_receive_message_length", most), ("grpc.max_send_message_length", most)]
    found = grpc.aio.server(options=options, maximum_concurrent_rpcs=service.limits.max_queue + 8)
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service, plane, repository, key), found)
    return found


def _guarded(method: Method) -> Method:
    """Ask for the key, and turn a refusal into gRPC's status; no exception's text goes out."""

    @functools.wraps(method)
    async def call(self: Servicer, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            if method.__name__ not in _OPEN:
                self.key.check({name: str(value) for name, value in context.invocation_metadata() or ()})
            return await method(self, request, context)
        except Refused as refused:
            await context.abort(getattr(grpc.StatusCode, GRPC[refused.kind]), refused.text)

    return call


class Servicer(InferenceServicer):
    """KServe's servicer, where medopt has no more to say than it."""

    def __init__(self, service: Service, plane: Plane, repository: Repository, key: Key) -> None:
        super().__init__(plane, repository)
        self._service, self._plane, self._repository, self.key = service, plane, repository, key

    ServerMetadata = _guarded(InferenceServicer.ServerMetadata)
    ServerLive = _guarded(InferenceServicer.ServerLive)
    ServerReady = _guarded(InferenceServicer.ServerReady)
    RepositoryModelUnload = _guarded(InferenceServicer.RepositoryModelUnload)

    @_guarded
    async def ModelReady(self, request: Any, _: Any) -> Any:
        """Whether a release serves."""
        return pb.ModelReadyResponse(ready=await self._plane.model_ready(request.name, request.version))

    @_guarded
    async def ModelMetadata(self, request: Any, _: Any) -> Any:
        """Inputs and outputs; REST tells more."""
        found = await self._plane.model_metadata(request.name, request.version)
        fields = ("name", "versions", "platform", "inputs", "outputs")
        return pb.ModelMetadataResponse(**{field: found[field] for field in fields})

    @_guarded
    async def RepositoryModelLoad(self, request: Any, _: Any) -> Any:
        """Read a release again from its folder."""
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)

    @_guarded
    async def ModelInfer(self, request: Any, _: Any) -> Any:
        """Answer a request."""
        with self._service.visited("grpc") as visit:
            return await self._infer(request, visit)

    async def _infer(self, request: Any, visit: RequestLog) -> Any:
        service = self._service
        served = service.shelf.find(request.model_name, request.model_version)
        visit.model, visit.version = served.name, served.checked.version
        with service.admitted(1, request.ByteSize()):
            asked, wanted, visit.digest = await service.in_reader(parse_message, request)
            reply = await service.answer(served, asked, visit, taken=1)
        return write_message(reply, wanted, raw=bool(request.raw_input_contents))


def parse_message(request: Any) -> tuple[InferenceRequest, OutputSelection, str]:
    """A ModelInferRequest, and what stands for its content in the log. Raises Refused."""
    if len(request.inputs) != 1 or len(request.raw_input_contents) > 1:
        raise malformed("Give exactly one input: image (FP32, prepared) or scan (BYTES, files).")
    tensor, raw = request.inputs[0], request.raw_input_contents
    shape = [int(side) for side in tensor.shape]
    check_input(tensor.name, tensor.datatype, shape)
    asked = from_raw(tensor.name, shape, raw[0]) if raw else _typed(tensor.name, shape, tensor.contents)
    outputs = {known_output(one.name): True for one in request.outputs}
    data = raw[0] if raw else tensor.SerializeToString()
    return asked, OutputSelection(known_id(request.id), outputs), content_digest(data)


def _typed(name: str, shape: Sequence[int], contents: Any) -> InferenceRequest:
    """An input whose values stand in the message's typed fields."""
    if name == IMAGE:
        return from_raw(name, shape, np.asarray(contents.fp32_contents, "<f4").tobytes())
    scans = tuple(contents.bytes_contents)
    if len(scans) != product(shape) or not all(scans):
        raise malformed(f"The input {name} must be as many files as its shape says, none of them empty.")
    return InferenceRequest(scans=scans)


def write_message(reply: InferenceResponse, wanted: OutputSelection, raw: bool) -> Any:
    """A ModelInferResponse: raw tensors to who sent raw ones, typed fields to others."""
    message = pb.ModelInferResponse(model_name=reply.model, model_version=reply.version, id=wanted.id)
    for key, value in reply.parameters.items():
        message.parameters[key].string_param = value
    for name in wanted.names():
        array = reply.arrays[name]
        tensor = message.outputs.add(name=name, datatype=datatype(array), shape=list(array.shape))
        if raw:
            message.raw_output_contents.append(to_raw(array))
        elif array.dtype == object:
            tensor.contents.bytes_contents.extend(array.ravel().tolist())
        else:
            tensor.contents.fp64_contents.extend(array.ravel().tolist())
    return message

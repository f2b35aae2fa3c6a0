"""KServe's own clients against a server, in a process of their own (their messages and Triton's have the same names).

python kserve_client.py REST_PORT GRPC_PORT KEY SCAN: one JSON object on stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs


def request(images: Any, binary: bool) -> InferRequest:
    tensor = InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return InferRequest("clinic", [tensor], "q-8")


def outputs(response: Any) -> dict[str, Any]:
    return {"id": response.id, "logits": response.outputs[3].as_numpy().tolist()}


async def over_rest(port: str, headers: dict[str, str], images: Any) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://127.0.0.1:{port}"
    return {
        "live": await client.is_server_live(base, headers),
        "ready": await client.is_model_ready(base, "clinic", headers),
        "json": outputs(await client.infer(base, request(images, False), model_name="clinic", headers=headers)),
        "binary": outputs(await client.infer(base, request(images, True), model_name="clinic", headers=dict(headers))),
    }


async def over_grpc(port: str, headers: dict[str, str], images: Any) -> dict[str, Any]:
    metadata = list(headers.items())
    client = InferenceGRPCClient(f"127.0.0.1:{port}")
    found = {
        "live": await client.is_server_live(),
        "ready": await client.is_model_ready("clinic", headers=metadata),
        "json": outputs(await client.infer(request(images, False), headers=metadata)),
        "binary": outputs(await client.infer(request(images, True), headers=metadata)),
    }
    stub = stubs.GRPCInferenceServiceStub(client._channel)
    loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="clinic"), metadata=metadata)
    await client.close()
    return found | {"loaded": [loaded.model_name, loaded.isLoaded]}


async def main(rest: str, grpc: str, key: str, file: str) -> dict[str, Any]:
    images, headers = np.load(Path(file)), {"x-api-key": key}
    answers = {"rest": await over_rest(rest, headers, images), "grpc": await over_grpc(grpc, headers, images)}
    return answers | {"descriptor": pb.DESCRIPTOR.serialized_pb.hex()}


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

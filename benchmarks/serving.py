"""What does the server cost? Throughput and latency under concurrent load, beside the bare runtime's.

    python benchmarks/serving.py RELEASE [--scan FILE] [--clients 1 4 16] [--seconds 5] [--json]

`medopt serve` runs in a process of its own on loopback, as it is (dynamic batching, golden cases, the domain gate).
So many clients ask at once, each for one image as soon as its last answer is there: with the prepared tensor (binary)
and with the scan's bytes, over REST and gRPC. "bare" is the same in this process without a server: the engine alone,
one image at a time and in batches, and reading, preparing and answering one scan. Clients share the machine with the
server.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from medopt.core.provenance import machine, physical_cores
from medopt.core.records import FloatArray
from medopt.release.predictor import Release
from medopt.serving.server.generated import open_inference_pb2 as pb
from medopt.serving.server.generated import open_inference_pb2_grpc as stubs
from medopt.serving.server.releases import name_of
from medopt.serving.server.v2_codec import to_raw

HEADER = "Inference-Header-Content-Length"
Ask = Callable[[], None]


@contextmanager
def server(release: Path, queue: int) -> Iterator[tuple[int, int]]:
    """The ports for REST and gRPC of a ready server."""
    words = ["serve", str(release), "--port", "0", "--grpc-port", "0", "--max-queue", str(queue)]
    process = subprocess.Popen([sys.executable, "-m", "medopt", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        ports = json.loads(process.stderr.readline())
        told = json.loads(process.stderr.readline())
        if told.get("state") != "READY":
            raise SystemExit(f"The release does not serve: {told}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield ports["rest"], ports["grpc"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def rest_clients(port: int, name: str, image: FloatArray, scan: bytes) -> dict[str, Callable[[], Ask]]:
    """How to make one client of each kind."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape]}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": image.nbytes}}]}).encode()
    bodies = {"image": (head + image.tobytes(), str(len(head))), "scan": (scan, "0")}

    def made(body: bytes, length: str) -> Ask:
        client = httpx.Client(timeout=60, headers={HEADER: length})
        url = f"http://127.0.0.1:{port}/v2/models/{name}/infer"
        return lambda: client.post(url, content=body).raise_for_status() and None

    return {what: partial(made, *words) for what, words in bodies.items()}


def grpc_clients(port: int, name: str, image: FloatArray, scan: bytes) -> dict[str, Callable[[], Ask]]:
    """The same over gRPC, each with a connection of its own."""
    raw = {"image": image.tobytes(), "scan": to_raw(np.array([scan], object))}

    def made(what: str) -> Ask:
        shape, kind = ([1, *image.shape], "FP32") if what == "image" else ([1], "BYTES")
        tensor = pb.ModelInferRequest.InferInputTensor(name=what, datatype=kind, shape=shape)
        message = pb.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[raw[what]])
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        call = stubs.GRPCInferenceServiceStub(channel).ModelInfer
        return lambda: call(message, timeout=60) and None

    return {what: partial(made, what) for what in raw}


def load(make: Callable[[], Ask], clients: int, seconds: float) -> dict[str, float]:
    """So many clients for so long: answers a second, and the median and 99th percentile of a request's time."""
    asks = [make() for _ in range(clients)]
    for ask in asks:
        ask()
    end = time.perf_counter() + seconds

    def one(ask: Ask) -> list[float]:
        times = []
        while (begun := time.perf_counter()) < end:
            ask()
            times.append(time.perf_counter() - begun)
        return times

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = np.concatenate([np.array(found) for found in pool.map(one, asks)])
    return figures(times, len(times) / (time.perf_counter() - begun))


def figures(times: Any, rate: float) -> dict[str, float]:
    """Milliseconds of a request, and images a second."""
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return {"images_per_second": float(rate), "p50_ms": float(p50), "p99_ms": float(p99), "requests": len(times)}


def bare(ask: Ask, images: int, seconds: float) -> dict[str, float]:
    """The same without a server, one call after the other."""
    ask()
    found = load(lambda: ask, 1, seconds)
    return found | {"images_per_second": found["images_per_second"] * images}


def measure(release: Path, scan: Path, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    """A row for each way of asking and number of clients."""
    predictor = Release.open(release, mode="throughput")
    image, _ = predictor.prepare(scan)
    size = predictor.setting.batch
    batch = np.repeat(image[None], size, axis=0)
    rows: list[dict[str, Any]] = []
    for what, ask, images in (
        ("engine alone", lambda: predictor.engine.run(image[None]) is None, 1),
        (f"engine alone, batches of {size}", lambda: predictor.engine.run(batch) is None, size),
        ("scan: read, prepared, answered", lambda: predictor.predict(scan) is None, 1),
    ):
        rows.append({"way": "bare", "what": what, "clients": 1} | bare(ask, images, seconds))
    with server(release, 4 * max(clients)) as (rest_port, grpc_port):
        words = (name_of(release), image, scan.read_bytes())
        ways = {"REST": rest_clients(rest_port, *words), "gRPC": grpc_clients(grpc_port, *words)}
        for way, kinds in ways.items():
            for what, make in kinds.items():
                for count in clients:
                    rows.append({"way": way, "what": what, "clients": count} | load(make, count, seconds))
    return rows


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--scan", type=Path, help="a file to ask about; else the release's first golden case")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    words = parser.parse_args()
    scan = words.scan or sorted((words.release / "golden").iterdir())[0]
    rows = measure(words.release, scan, words.clients, words.seconds)
    title = f"{scan.stat().st_size / 1e6:.2f} MB a scan, {physical_cores()} cores of {machine().cpu}"
    table = Table("", "", "clients", "images/s", "p50 ms", "p99 ms", title=f"{title}; load {os.getloadavg()[0]:.1f}")
    for row in rows:
        numbers = [f"{row[key]:.1f}" for key in ("images_per_second", "p50_ms", "p99_ms")]
        table.add_row(row["way"], row["what"], str(row["clients"]), *numbers)
    Console(width=120).print(table)
    if words.json:
        print(json.dumps({"machine": asdict(machine()), "rows": rows}, allow_nan=False))


if __name__ == "__main__":
    main()

"""A real server process, and requests to it as any client would write them (KServe is never imported here: its messages
and Triton's have the same names, and one process takes only one of them)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from clinic_fixtures import environment
from numpy.typing import NDArray

from medopt.core.records import FloatArray

WHOLE = {"Inference-Header-Content-Length": "0"}


@dataclass(slots=True)
class Server:
    """A server that listens; what it logs is read as it comes."""

    process: subprocess.Popen[str]
    raw: list[str] = field(default_factory=list)
    rest: int = 0
    grpc: int = 0
    scheme: str = "http"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.raw)]

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.rest}{path}"

    def listen(self) -> None:
        for line in self.process.stderr or ():
            self.raw.append(line)

    def wait_for(self, event: str, count: int = 1, seconds: float = 240) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [one for one in self.events if one["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            assert self.process.poll() is None or found, "".join(self.raw)
            time.sleep(0.02)
        raise AssertionError((event, self.raw))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@contextmanager
def served(*words: object, releases: int = 1, scheme: str = "http", **env: str) -> Iterator[Server]:
    """`medopt serve WORDS` on free ports, once it has looked at so many releases."""
    command = [sys.executable, "-m", "medopt", "serve", *map(str, words), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**env))
    server = Server(process, scheme=scheme)
    reader = threading.Thread(target=server.listen, daemon=True)
    reader.start()
    try:
        told = server.wait_for("listening")
        server.rest, server.grpc = told["rest"], told["grpc"]
        server.wait_for("release", releases)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)


def image_request(images: FloatArray, **parts: Any) -> tuple[bytes, dict[str, str]]:
    """A body with one binary tensor, and its header."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape)} | parts
    data = images.astype("<f4").tobytes()
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def arrays(answer: httpx.Response) -> dict[str, NDArray[Any]]:
    """The outputs of a JSON reply."""
    assert answer.status_code == 200, answer.text
    found = {}
    for one in answer.json()["outputs"]:
        kind = np.float64 if one["datatype"] == "FP64" else object
        found[one["name"]] = np.array(one["data"], kind).reshape(one["shape"])
    return found

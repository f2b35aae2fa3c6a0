"""500 mutated v2 requests to a real server: each is answered, none with 500, and nothing is left open."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from clinic_fixtures import Finished
from server_process import WHOLE, image_request, served

pytestmark = pytest.mark.long


def mutated(data: bytes, seed: int) -> bytes:
    draw, out = random.Random(seed), bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        at = draw.randrange(max(1, min(len(out), draw.choice([32, 200, len(out) or 1]))))
        if draw.random() < 0.6 and out:
            out[at % len(out)] = draw.randrange(256)
        elif draw.random() < 0.5:
            del out[at : at + draw.randrange(1, 40)]
        else:
            out[at:at] = draw.choice([b'"', b"{", b"[", b"\xff\xff", b"null", b"1e999", b"NaN"])
    return bytes(out)


def test_v2_requests(finished: Finished) -> None:
    scan = sorted((finished.clinic.data / "scans").glob("*.dcm"))[-1].read_bytes()
    binary, headers = image_request(np.full((1, 1, 32, 32), 0.5, np.float32))
    plain = (
        b'{"id": "7", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [1, 0, 1, 0]}]}'
    )
    with served(finished.release) as server:
        folder = Path(f"/proc/{server.process.pid}/fd")
        assert httpx.get(server.url("/v2/health/live")).status_code == 200
        time.sleep(6)
        before = len(list(folder.iterdir()))

        def post(seed: int) -> int:
            body, extra = [(scan, WHOLE), (binary, headers), (plain, {})][seed % 3]
            path = "/v2/repository/index" if seed % 50 == 0 else "/v2/models/clinic/infer"
            return httpx.post(server.url(path), content=mutated(body, seed), headers=extra, timeout=100).status_code

        with ThreadPoolExecutor(8) as pool:
            codes = set(pool.map(post, range(500)))
        assert codes <= {200, 400, 413, 429, 504}
        time.sleep(7)
        assert len(list(folder.iterdir())) <= before + 3
        assert httpx.post(server.url("/v2/models/clinic/infer"), content=scan, headers=WHOLE).status_code == 200
        assert not [line for line in server.events if line["event"] == "failure" or line.get("code") == "500"]

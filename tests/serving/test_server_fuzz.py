"""Mutated v2 requests to a real server: each is answered, none with 500, each has its line, and nothing is left open.

200 with a fixed seed; MEDOPT_TEST_FUZZ=2000 tries as many.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from clinic_fixtures import Finished
from server_process import WHOLE, Server, image_request, served

from medopt.serving.server.multipart import MultipartError, header_values

COUNT = int(os.environ.get("MEDOPT_TEST_FUZZ", "200"))
PIECES = (b'"', b"{", b"[", b"\xff\xff", b"null", b"1e999", b"NaN", b"\r\n", b"--b", b"--", b";", b"filename=", b"\0")


def mutated(data: bytes, seed: int) -> bytes:
    draw, out = random.Random(seed), bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        at = draw.randrange(max(1, min(len(out), draw.choice([32, 200, len(out) or 1]))))
        if draw.random() < 0.6 and out:
            out[at % len(out)] = draw.randrange(256)
        elif draw.random() < 0.5:
            del out[at : at + draw.randrange(1, 40)]
        else:
            out[at:at] = draw.choice(PIECES)
    return bytes(out)


def form(scan: bytes, model: bytes = b"") -> bytes:
    field = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model + b"\r\n"
    head = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a.dcm"\r\nContent-Type: a/b\r\n\r\n'
    return (field if model else b"") + head + scan + b"\r\n--b--\r\n"


def open_files(server: Server) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def resident_mib(server: Server) -> int:
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_v2_requests_and_forms(finished: Finished) -> None:
    scan = sorted((finished.clinic.data / "scans").glob("*.dcm"))[-1].read_bytes()
    binary, headers = image_request(np.full((1, 1, 32, 32), 0.5, np.float32))
    plain = (
        b'{"id": "7", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [1, 0, 1, 0]}]}'
    )
    form_type, infer = {"Content-Type": "multipart/form-data; boundary=b"}, "/v2/models/clinic/infer"
    kinds = [
        (infer, scan, WHOLE), (infer, binary, headers), (infer, plain, {}), (infer, form(scan), form_type),
        ("/try", form(scan, b"clinic"), form_type), ("/v2/repository/index", b'{"ready": true}', {}),
    ]  # fmt: skip
    once = httpx.Limits(max_keepalive_connections=0)
    with served(finished.release, "--try") as server, httpx.Client(timeout=100, limits=once) as client:
        for path, body, extra in kinds[:-1]:
            assert httpx.post(server.url(path), content=body, headers=extra, timeout=60).status_code in (200, 400)
        time.sleep(6)  # the connections of these end
        before, resident = open_files(server), resident_mib(server)
        already = len(server.events)

        def post(seed: int) -> int:
            path, body, extra = kinds[seed % len(kinds)]
            return client.post(server.url(path), content=mutated(body, seed), headers=extra).status_code

        with ThreadPoolExecutor(8) as pool:
            codes = Counter(pool.map(post, range(COUNT)))
        assert set(codes) <= {200, 400, 404, 413, 429, 504}
        until = time.monotonic() + 120
        while open_files(server) > before + 3 and time.monotonic() < until:
            time.sleep(0.2)
        lines = [line for line in server.events[already:] if line["event"] == "request"]
        after = open_files(server), resident_mib(server)
        print(f"{COUNT} tried, {codes}; files and MiB {before}, {resident} before, {after} after; {len(lines)} lines")
        assert after[0] <= before + 3 and after[1] < resident + 150
        assert httpx.post(server.url(infer), content=scan, headers=WHOLE).status_code == 200
        assert not [line for line in server.events if line["event"] == "failure" or line.get("code") == "500"]
        turned_away = Counter(str(line["code"]) for line in lines if "refused" in line)
        for code, count in codes.items():
            assert code == 200 or turned_away[str(code)] == count, (codes, turned_away)


def test_headers_of_parts() -> None:
    """Whatever a header holds, it is read or refused."""
    for seed in range(2000):
        text = mutated(b'form-data; name="scan"; filename*0*=UTF-8\'\'a%20b; filename*1=c; x="y\\"z"', seed)
        try:
            value, parameters = header_values("content-disposition", text.decode("latin-1"))
        except MultipartError:
            continue
        assert isinstance(value, str) and all(isinstance(text, str) for text in parameters.values())

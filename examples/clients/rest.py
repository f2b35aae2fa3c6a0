"""Ask a medopt server about scans over REST: the standard library is enough.

    medopt serve runs/phantom
    python rest.py http://127.0.0.1:8080 phantom scan.dcm series.zip

Each file is DICOM, NIfTI, PNG or JPEG, or a zip of one series. MEDOPT_API_KEY has the server's key, if any.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def form(files: list[bytes]) -> tuple[bytes, str]:
    """The files as multipart/form-data, and its Content-Type. No file's name is sent: it may name a patient."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="scan"; filename="scan"\r\n\r\n'.encode()
    body = b"".join(head + content + b"\r\n" for content in files) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def infer(server: str, model: str, files: list[bytes]) -> dict[str, list]:
    """The outputs by name, a row a scan; raises RuntimeError with the server's reason."""
    body, content_type = form(files)
    headers = {"Content-Type": content_type, "X-API-Key": os.environ.get("MEDOPT_API_KEY", "")}
    try:
        with urlopen(Request(f"{server}/v2/models/{model}/infer", body, headers), timeout=120) as response:
            answer = json.load(response)
    except HTTPError as error:
        raise RuntimeError(f"{error.code}: {json.load(error)['error']}") from None
    outputs = {}
    for output in answer["outputs"]:
        data, row = output["data"], len(output["data"]) // len(files)
        outputs[output["name"]] = [data[at : at + row] for at in range(0, len(data), row)]
    return outputs | {"labels": answer["parameters"]["labels"].split(";")}


def main(server: str, model: str, *paths: str) -> None:
    outputs = infer(server, model, [Path(path).read_bytes() for path in paths])
    for row, path in enumerate(paths):
        if reason := outputs["declined"][row][0]:  # a declined scan has no decision, and its numbers are null
            print(f"{path}: declined, {reason}")
            continue
        pairs = zip(outputs["labels"], outputs["probabilities"][row], strict=True)
        shares = ", ".join(f"{label} {probability:.3f}" for label, probability in pairs)
        print(f"{path}: {outputs['decision'][row][0]} ({shares})")


if __name__ == "__main__":
    main(*sys.argv[1:])

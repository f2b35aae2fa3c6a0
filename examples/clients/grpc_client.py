"""Ask a medopt server about scans over gRPC, with Triton's client: pip install 'tritonclient[grpc]'.

    medopt serve runs/phantom
    python grpc_client.py 127.0.0.1:8081 phantom scan.dcm series.zip

Each file is DICOM, NIfTI, PNG or JPEG, or a zip of one series. MEDOPT_API_KEY has the server's key, if any.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput


def main(server: str, model: str, *paths: str) -> None:
    key = os.environ.get("MEDOPT_API_KEY")
    headers = {"x-api-key": key} if key else None
    files = np.array([Path(path).read_bytes() for path in paths], object)
    scans = InferInput("scan", [len(files)], "BYTES")
    scans.set_data_from_numpy(files)
    with closing(InferenceServerClient(server)) as client:
        result = client.infer(model, [scans], headers=headers, client_timeout=120)
    labels = result.get_response().parameters["labels"].string_param.split(";")
    outputs = {name: result.as_numpy(name) for name in ("decision", "declined", "probabilities")}
    for path, decision, declined, probabilities in zip(paths, *outputs.values(), strict=True):
        if declined:  # a declined scan has no decision, and its numbers are NaN
            print(f"{path}: declined, {declined.decode()}")
            continue
        shares = ", ".join(f"{label} {value:.3f}" for label, value in zip(labels, probabilities, strict=True))
        print(f"{path}: {decision.decode()} ({shares})")


if __name__ == "__main__":
    main(*sys.argv[1:])

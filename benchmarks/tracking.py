"""What tracking costs: the share of an epoch, with a local store and with a team's server, and logging a ResNet-50.

    python benchmarks/tracking.py [--server URI] [--epochs 20] [--json]

An epoch here is as long as the demo's (3.5 s on two cores, --epoch-seconds); what is measured is how long the store
holds it up, and what begin and end of a run take. With --server a third row has a proxy before the server that answers
each request later by --slow seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
import torch

from medopt.compression.export import export_onnx
from medopt.config import Study
from medopt.core.records import EpochRecord
from medopt.models import build_model
from medopt.tracking.tracker import Tracker

STUDY = {
    "name": "tracking-benchmark",
    "question": "What does tracking cost?",
    "data": {"manifest": "m.csv", "labels": ["no", "yes"]},
    "prepare": {"size": [224, 224]},
    "model": {"depth": 50, "width": 1.0, "stem": "large"},
}


def record(epoch: int, seconds: float) -> EpochRecord:
    """An epoch's figures."""
    return EpochRecord(epoch, 0.5, 0.5, 0.9, 1e-3, 300.0, seconds, 0.1)


def slow_proxy(server: str, delay: float) -> str:
    """An address that hands on to the server after a delay."""

    class Handler(BaseHTTPRequestHandler):
        def _hand_on(self) -> None:
            time.sleep(delay)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "content-length")}
            answer = requests.request(self.command, f"{server}{self.path}", data=body, headers=kept, timeout=60)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on

        def log_message(self, format: str, *words: Any) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{found.server_port}"


def measured(name: str, uri: str | None, epochs: int, seconds: float) -> dict[str, Any]:
    """How long each epoch waits for the store, and what the run's begin and end take."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    study = Study.model_validate(STUDY)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        tracker = Tracker(study, Path(folder), None, f"{name} {time.time_ns()}")
        tracker.log_start(study, "d" * 64, {"study": study.name}, {"train": 4})
        opened = time.perf_counter() - begun
        waits, history = [], []
        for epoch in range(epochs):
            history.append(record(epoch, seconds))
            time.sleep(min(seconds, 0.5))  # the epoch; the store works meanwhile only where it has to
            begun = time.perf_counter()
            tracker.sync_history(history)
            waits.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        tracker.end("done")
        kept = len(tracker._client.get_metric_history(tracker.run_id, "curves/loss_train"))
        return {
            "store": name,
            "first_ms": 1e3 * waits[0],
            "median_ms": 1e3 * statistics.median(waits[1:]),
            "longest_ms": 1e3 * max(waits),
            "share_of_epoch": statistics.median(waits[1:]) / seconds,
            "begin_s": opened,
            "end_s": time.perf_counter() - begun,
            "epochs_kept": kept,
        }


def resnet50(name: str, uri: str | None) -> dict[str, Any]:
    """Time and memory of logging a ResNet-50 as float ONNX."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    study = Study.model_validate(STUDY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        model = build_model(study).eval()
        export_onnx(model, torch.zeros(2, 1, 224, 224).numpy(), path, study.compression.opset)
        del model
        tracker = Tracker(study, Path(folder), None, f"{name} {time.time_ns()}")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        tracker.log_files({"models": path})
        took = time.perf_counter() - begun
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        tracker.end("done")
        return {"store": name, "megabytes": path.stat().st_size / 1e6, "seconds": took, "peak_grew_mib": grown}


def main() -> None:
    """Measure, and print a line a store."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    words.add_argument("--server", default="", help="a team's server; sign in as always")
    words.add_argument("--epochs", type=int, default=20)
    words.add_argument("--epoch-seconds", type=float, default=3.5)
    words.add_argument("--slow", type=float, default=3.0, help="seconds that each answer of the slow server takes")
    words.add_argument("--json", action="store_true")
    given = words.parse_args()
    stores: list[tuple[str, str | None]] = [("sqlite", None)]
    if given.server:
        stores += [("server", given.server), ("slow server", slow_proxy(given.server, given.slow))]
    rows = [measured(name, uri, given.epochs, given.epoch_seconds) for name, uri in stores]
    models = [resnet50(name, uri) for name, uri in stores[:2]]
    for row in [*rows, *models]:
        shown = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print("  ".join(shown))
    if given.json:
        print(json.dumps({"epochs": rows, "resnet50": models}))


if __name__ == "__main__":
    main()

"""The process that decodes and predicts: `python -m medopt.pacs.worker_process FD`. It writes nothing and may die.

Messages over the socket are JSON, whose bytes are base64. It ends when the other side does.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import threading
import time
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medopt.core import fast_monai_import
from medopt.core.errors import MedoptError
from medopt.pacs.settings import Results, SeriesRules


def serve(wire: Connection) -> None:
    """Open the release that the first message names, then answer a study a message."""
    first = json.loads(wire.recv_bytes())
    fast_monai_import.install()
    from medopt.pacs.study_inference import Answering

    rules = None if first["series"] is None else SeriesRules.model_validate(first["series"])
    wanted = Results.model_validate(first["results"])
    try:
        answering = Answering(Path(first["release"]), first["model"], rules, wanted)
    except MedoptError as error:
        wire.send_bytes(json.dumps({"refused": str(error), "code": error.exit_code}).encode())
        return
    wire.send_bytes(json.dumps({"model": answering.origin.model_digest}).encode())
    while True:
        asked = json.loads(wire.recv_bytes())
        wire.send_bytes(json.dumps(_answer(answering, asked)).encode())


def _answer(answering: Any, asked: dict[str, Any]) -> dict[str, Any]:
    now = datetime.fromisoformat(asked["now"])
    found = answering.study(Path(asked["folder"]), asked["digests"], asked["previous"], now)
    made = [
        {"kind": one.kind, "sop_class": one.sop_class, "sop_uid": one.sop_uid}
        | {"content": base64.b64encode(one.content).decode()}
        for one in found.made
    ]
    return {"ending": found.ending, "reason": found.reason, "made": made, "decisions": found.decisions}


def _end_with(parent: int) -> None:
    """A node that was killed cannot end a worker that hangs: it ends itself."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Begin; what goes wrong here is seen by the node, which parks the study after some tries."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the node ends it
        signal.signal(number, signal.SIG_IGN)
    for name in ("pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.nice(10)  # a sender that waits for its answer goes before a prediction
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()

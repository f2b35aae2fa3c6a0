"""The process that decodes and predicts: `python -m medopt.pacs.worker_process FD`. It writes nothing and may die.

It exchanges the messages of `worker_protocol` over a socket, and ends when the other side does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from medopt.core import fast_monai_import
from medopt.core.errors import MedoptError
from medopt.pacs.worker_protocol import OpenRelease, ReleaseOpened, StudyRequest


def serve(connection: Connection) -> None:
    """Open the release that the first message names, then answer one study for each further message."""
    request = OpenRelease.model_validate_json(connection.recv_bytes())
    if request.candidate:
        _give_way(idle=request.candidate == "idle")
    fast_monai_import.install()
    from medopt.pacs.study_inference import StudyInference

    try:
        inference = StudyInference(
            request.release, request.model, request.series, request.results, answers_only=bool(request.candidate)
        )
        inference.warm_up()
    except MedoptError as error:
        connection.send_bytes(ReleaseOpened(refusal=str(error)).to_json())
        return
    identity = inference.identity
    opened = ReleaseOpened(model_digest=identity.model_digest, release_digest=identity.release_digest)
    connection.send_bytes(opened.to_json())
    while True:
        study = StudyRequest.model_validate_json(connection.recv_bytes())
        connection.send_bytes(inference.answer(study).to_json())


def _give_way(*, idle: bool) -> None:
    """Be the first to go where memory runs out; `idle`: run only when nothing else wants the processor."""
    if idle:
        with suppress(OSError, AttributeError):
            os.nice(19)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with(parent: int) -> None:
    """End when the parent has ended: a node that was killed cannot end a worker that hangs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Serve the node. If this process fails, the node notices, and parks the study after some tries."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the node ends this process
        signal.signal(number, signal.SIG_IGN)
    for name in ("pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.nice(10)  # a sender that waits for its acknowledgement goes before a prediction
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()

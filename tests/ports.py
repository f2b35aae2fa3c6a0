"""Ports for servers that a test starts."""

from __future__ import annotations

import random
import socket

BELOW_CLIENTS = range(20000, 32000)  # Linux gives outgoing connections ports from 32768 on: none of ours is taken so


def free_port() -> int:
    """A port that nobody listens on, and that no connection of another test gets before its server does."""
    while True:
        port = random.SystemRandom().choice(BELOW_CLIENTS)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

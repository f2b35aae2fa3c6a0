"""The server's log: one JSON object a line on stderr; no identifier, no file name, nothing from a request."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_LOG = logging.getLogger("medopt.serve")


def configure(also: logging.Handler | None = None) -> None:
    """Send medopt's lines to stderr, and to `also`; other packages may quote a request, so only their failures show."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOG.handlers, _LOG.propagate = [handler, *([also] if also else [])], False
    _LOG.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "grpc", "asyncio", "pydicom", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def event(level: int, what: str, facts: Mapping[str, Any]) -> None:
    """Write one line."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "level": logging.getLevelName(level).lower(), "event": what, **facts}
    _LOG.log(level, json.dumps(line, default=str))

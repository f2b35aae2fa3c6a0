"""A request's body, read within the limits of size, memory and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from medopt.serving.server.limits import Refused, ServerLimits


def check_announced(request: Request, max_size: int) -> None:
    """Raises Refused where the header announces more than is taken."""
    text = request.headers.get("content-length")
    if text is not None and (not text.isdecimal() or int(text) > max_size):
        raise _too_large(max_size)


def _too_large(max_size: int) -> Refused:
    return Refused("size", f"The body is larger than this server takes ({max_size} bytes).")


async def read_body(request: Request, limits: ServerLimits, take: Callable[[int], None]) -> bytes:
    """The body, each piece counted as it comes; raises Refused for one that is too large or too slow."""
    pieces, size = list[bytes](), 0
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.body_seconds
    window_end, window_size = loop.time() + limits.window_seconds, 0
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout_at(min(end, window_end)):
                piece = await anext(stream, None)
            if piece is None:
                return b"".join(pieces)
            size += len(piece)
            if size > limits.max_body:
                raise _too_large(limits.max_body)
            take(len(piece))
            pieces.append(piece)
            if loop.time() < window_end and size - window_size < limits.window_bytes:
                continue
            if size - window_size < limits.window_bytes:
                raise TimeoutError
            window_end, window_size = loop.time() + limits.window_seconds, size
    except TimeoutError:
        if loop.time() >= end:
            raise Refused("slow", f"The body did not arrive within {limits.body_seconds:g} s.") from None
        raise Refused(
            "slow",
            f"The body came too slowly: less than {limits.window_bytes >> 10} KiB in {limits.window_seconds:g} s.",
        ) from None
    except ClientDisconnect:
        raise Refused("malformed", "The client went away before its request had arrived.") from None


async def drain(request: Request, limits: ServerLimits) -> None:
    """Take the rest of a body that was refused, for a while: a browser shows no answer before it has sent its file."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(limits.body_seconds):
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size > limits.max_unpacked:
                    return

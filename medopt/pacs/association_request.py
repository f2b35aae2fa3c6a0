"""The first message of a connection: an A-ASSOCIATE-RQ (PS3.8 9.3.2), read whole, in time, and checked.

A peer that is turned away gets an A-ASSOCIATE-RJ or an A-ABORT where it speaks DICOM, and the node a reason to log.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from pynetdicom.pdu import A_ASSOCIATE_RQ

MAX_REQUEST_BYTES = 512 * 1024  # 128 contexts with 45 transfer syntaxes each take 250 KiB
_BEGIN_SECONDS, _WHOLE_SECONDS, _LINGER_SECONDS = 5.0, 15.0, 0.5
_HEADER_BYTES, _TITLES_END, _CHUNK = 6, 42, 64 * 1024
_VERSION, _CALLED, _CALLING = slice(6, 8), slice(10, 26), slice(26, 42)
_REQUEST = 0x01


def _rejection(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason])


def _abort(reason: int) -> bytes:
    """An A-ABORT by the service provider (PS3.8 9.3.8)."""
    return bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, reason])


TOO_MANY = _rejection(2, 3, 2)
"""Transient, by the provider (presentation): local limit exceeded."""
_UNKNOWN_CALLED, _UNKNOWN_CALLING, _UNKNOWN_VERSION = _rejection(1, 1, 7), _rejection(1, 1, 3), _rejection(1, 2, 2)
_UNEXPECTED_PDU, _INVALID_PARAMETER = _abort(2), _abort(6)


@dataclass(frozen=True, slots=True)
class TurnedAway(Exception):
    """The peer gets no association. The reason quotes nothing of what it sent; empty: it left by itself."""

    reason: str
    reply: bytes = b""


def read_request(connection: socket.socket) -> bytes:
    """The bytes of the request; raises TurnedAway, OSError."""
    data, deadline = bytearray(), time.monotonic() + _BEGIN_SECONDS
    length = _HEADER_BYTES
    while len(data) < length:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            chunk = connection.recv(min(_CHUNK, length - len(data)))
        except TimeoutError:
            reason = "it requested no association in time" if len(data) < _HEADER_BYTES else "its request is too slow"
            raise TurnedAway(reason, _UNEXPECTED_PDU if data else b"") from None
        if not chunk:
            raise TurnedAway("its association request breaks off" if data else "")
        data += chunk
        if data[0] != _REQUEST:
            raise TurnedAway("it does not begin with an association request", _UNEXPECTED_PDU)
        if len(data) == _HEADER_BYTES == length:
            length += int.from_bytes(data[2:6], "big")
            deadline = time.monotonic() + _WHOLE_SECONDS
            if length > MAX_REQUEST_BYTES:
                raise TurnedAway("its association request is longer than 512 KiB", _INVALID_PARAMETER)
        if time.monotonic() > deadline:
            raise TurnedAway("its request is too slow", _UNEXPECTED_PDU)
    return bytes(data)


def checked_request(data: bytes) -> bytes:
    """The request as pynetdicom takes it; raises TurnedAway for what would end a connection without a word.

    That is titles or items that cannot be decoded. Of the protocol's versions the first bit alone counts (PS3.8 9.3.2).
    """
    if len(data) < _TITLES_END:
        raise TurnedAway("its association request is malformed", _INVALID_PARAMETER)
    if not data[_VERSION.stop - 1] & 1:
        raise TurnedAway("its protocol version is not the first one", _UNKNOWN_VERSION)
    data = data[: _VERSION.start] + b"\x00\x01" + data[_VERSION.stop :]
    for title, name, reply in (
        (data[_CALLED], "called", _UNKNOWN_CALLED),
        (data[_CALLING], "calling", _UNKNOWN_CALLING),
    ):
        text = title.decode("ascii", "replace").strip(" \0")
        if not text or not text.isascii() or not text.isprintable():
            raise TurnedAway(f"its {name} AE title is empty or not in ASCII", reply)
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(data)
        request.to_primitive()
    except Exception:  # pynetdicom raises many kinds of exceptions, whose text may quote the request
        raise TurnedAway("its association request is malformed", _INVALID_PARAMETER) from None
    return data


def reply_and_close(connection: socket.socket, reply: bytes) -> None:
    """Send the reply, and take what still comes for a moment: else the peer would lose the reply."""
    with suppress(OSError):
        if reply:
            connection.settimeout(_LINGER_SECONDS)
            connection.sendall(reply)
            connection.shutdown(socket.SHUT_WR)
            until = time.monotonic() + _LINGER_SECONDS
            while time.monotonic() < until and connection.recv(_CHUNK):
                pass
    with suppress(OSError):
        connection.close()

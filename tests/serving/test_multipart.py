"""Multipart bodies as RFC 2046 allows it, cut into chunks at every place."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from medopt.serving.server.multipart import MultipartError, MultipartParser


class Parts:
    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, str], bytes]] = []
        self.ended = 0

    def begin(self, headers: Mapping[str, str]) -> None:
        self.parts.append((dict(headers), b""))

    def data(self, chunk: memoryview) -> None:
        headers, content = self.parts[-1]
        self.parts[-1] = headers, content + bytes(chunk)

    def end(self) -> None:
        self.ended += 1


def parsed(body: bytes, size: int) -> list[tuple[dict[str, str], bytes]]:
    parts = Parts()
    parser = MultipartParser(b"b0", parts)
    for start in range(0, len(body), size):
        parser.feed(body[start : start + size])
    parser.close()
    assert parts.ended == len(parts.parts)
    return parts.parts


TYPE = {"content-type": "application/dicom"}
HEAD = b"--b0\r\nContent-Type: application/dicom\r\n\r\n"
PLAIN = HEAD + b"one\r\n" + HEAD + b"two\r\n--b0--"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PLAIN, [(TYPE, b"one"), (TYPE, b"two")]),
        (b"This is a preamble.\r\n--b\r\n--b0x no\r\n" + PLAIN, [(TYPE, b"one"), (TYPE, b"two")]),
        (b"\r\n" + PLAIN + b"\r\nan epilogue\r\n--b0\r\n", [(TYPE, b"one"), (TYPE, b"two")]),
        (PLAIN.replace(b"--b0\r\n", b"--b0 \t \r\n") + b"  \r\n", [(TYPE, b"one"), (TYPE, b"two")]),
        (b"--b0\r\n\r\nno headers\r\n--b0--\r\n", [({}, b"no headers")]),
        (b"--b0\r\nA: b\r\n\r\n\r\n--b0--\r\n", [({"a": "b"}, b"")]),
        (b"--b0\r\nA: b\r\n\r\n--b0--\r\n", [({"a": "b"}, b"")]),
        (b"--b0\r\nA: b;\r\n  c=d\r\n\r\nx\r\n--b0--\r\n", [({"a": "b; c=d"}, b"x")]),
        (b"--b0\r\nA: b\r\n\r\nx\r\n--b\r\n--b01\r\n\r\r\n--b0--\r\n", [({"a": "b"}, b"x\r\n--b\r\n--b01\r\n\r")]),
    ],
)
def test_parts(body: bytes, expected: list[tuple[dict[str, str], bytes]], size: int) -> None:
    assert parsed(body, size) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"only a preamble",
        PLAIN[:-4],
        PLAIN[:-1],
        b"--b0\r\nno colon\r\n\r\nx\r\n--b0--",
        b"--b0\r\nA: " + b"b" * 20_000 + b"\r\n\r\nx\r\n--b0--",
    ],
)
def test_a_body_of_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(MultipartError):
        parsed(body, 100)

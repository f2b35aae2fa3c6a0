"""What a request's headers must say: the API key, kept as a hash, and no Content-Encoding."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from medopt.core.errors import ConfigError
from medopt.serving.server.limits import Refused

VARIABLE = "MEDOPT_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach, so that no key is needed."""
_MIN_LENGTH = 16


class Key:
    """The key of a server, or none."""

    def __init__(self, text: str = "") -> None:
        self._digest = _digest(text) if text else b""

    @classmethod
    def read(cls, file: Path | None) -> Key:
        """From a file's first non-blank line, else from the environment. Raises ConfigError."""
        return cls(key_text(file))

    def __bool__(self) -> bool:
        return bool(self._digest)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises Refused unless X-API-Key or Authorization: Bearer (names in lower case) holds the key."""
        if not self._digest:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(_digest(given), self._digest):
            raise Refused("key", "The API key is absent or wrong: give it as X-API-Key or Authorization: Bearer.")


def key_text(file: Path | None) -> str:
    """The key itself, from a file's first non-blank line, else from the environment, else ''. Raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8-sig") if file else os.environ.get(VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The API key file {file} cannot be read ({type(error).__name__}).") from None
    text = text.strip().splitlines()[0].strip() if text.strip() else ""
    if (file or text) and len(text) < _MIN_LENGTH:
        raise ConfigError(f"The API key is shorter than {_MIN_LENGTH} characters. Make one with: openssl rand -hex 32")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ConfigError(
            f"The API key in {file or VARIABLE} holds characters that HTTP headers do not carry: it takes ASCII "
            "letters, digits and signs without spaces. Make one with: openssl rand -hex 32"
        )
    return text


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raises Refused for a body that is packed (names of headers in lower case): its size would be anybody's guess."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Refused("encoding", "Content-Encoding is not taken: send the body as it is.")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

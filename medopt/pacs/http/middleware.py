"""Checks before every request: is it for this machine, has it the key, does a form come from the page itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse, Response

from medopt.serving.server.auth import LOOPBACK, Key
from medopt.serving.server.html_page import HEADERS
from medopt.serving.server.limits import Refused

Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]
_WITHOUT_KEY = ("/health",)


class HttpGuard:
    """ASGI middleware. `names` are the host names that a request may use, which prevents DNS rebinding;
    `rejected` gets the reason of each refusal.
    """

    def __init__(self, app: Channel, key: Key, names: list[str], rejected: Callable[[str], None]) -> None:
        self._app, self._key, self._rejected = app, key, rejected
        self._names = {*LOOPBACK, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, path: str, headers: Mapping[str, str]) -> Response | None:
        if not self._key and _host_name(headers.get("host", "")) not in self._names:
            self._rejected("an HTTP request for another host name than web.names")
            return PlainTextResponse("This machine is not configured under that name (web.names).\n", 421, HEADERS)
        if path in _WITHOUT_KEY:
            return None
        try:
            self._key.check(_with_password(headers))
        except Refused:
            given = headers.keys() & {"authorization", "x-api-key"}
            self._rejected(f"an HTTP request {'with a wrong' if given else 'without a'} key")
            challenge = {"WWW-Authenticate": 'Basic realm="medopt", charset="UTF-8"', "Connection": "close"}
            return PlainTextResponse("The key is missing or wrong.\n", 401, HEADERS | challenge)
        return None


def _host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    name, _, port = header.rpartition(":")
    host = name if port.isdecimal() else header
    return host.strip("[]").lower()


def _with_password(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers with the password of Basic authentication (RFC 7617), which browsers use, as the key."""
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return headers
    try:
        password = base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        password = ""
    return {**headers, "x-api-key": password, "authorization": ""}


class FormToken:
    """Distinguishes a form of the page from one of another site that posts here with the browser's password (CSRF)."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    @property
    def value(self) -> str:
        """The token in the page's forms; another site cannot read it."""
        return hmac.new(self._secret, b"form", hashlib.sha256).hexdigest()

    def is_valid(self, token: str, headers: Mapping[str, str]) -> bool:
        """Whether a posted form is the page's own."""
        origin = headers.get("origin", "")
        other_origin = origin not in ("", "null") and origin.partition("://")[2] != headers.get("host", "")
        cross_site = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        return hmac.compare_digest(token.encode(), self.value.encode()) and not other_origin and not cross_site

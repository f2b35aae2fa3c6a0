"""Before every request: is it meant for this machine, does it hold the key, does a form come from the page itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse, Response

from medopt.serving.server.auth import LOOPBACK, Key
from medopt.serving.server.limits import Refused

Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_OPEN = ("/health",)


class HttpGuard:
    """ASGI middleware. `names` are the hosts that a request may call; a page elsewhere cannot rebind a name to us."""

    def __init__(self, app: Channel, key: Key, names: list[str]) -> None:
        self._app, self._key = app, key
        self._names = {*LOOPBACK, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, path: str, headers: Mapping[str, str]) -> Response | None:
        if not self._key and host_of(headers.get("host", "")) not in self._names:
            return PlainTextResponse("This machine is not known by that name here (web.names).\n", 421, HEADERS)
        if path in _OPEN:
            return None
        try:
            self._key.check(_with_password(headers))
        except Refused:
            asks = {"WWW-Authenticate": 'Basic realm="medopt", charset="UTF-8"', "Connection": "close"}
            return PlainTextResponse("The key is absent or wrong.\n", 401, HEADERS | asks)
        return None


def host_of(text: str) -> str:
    """The name in a Host header, without its port."""
    host = text.rpartition(":")[0] if text.rpartition(":")[2].isdecimal() else text
    return host.strip("[]").lower()


def _with_password(headers: Mapping[str, str]) -> Mapping[str, str]:
    """A browser gives the key as a password (RFC 7617)."""
    scheme, _, word = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return headers
    try:
        password = base64.b64decode(word, validate=True).decode().partition(":")[2]
    except ValueError:
        password = ""
    return {**headers, "x-api-key": password, "authorization": ""}


class Forms:
    """Tells a form of our own page from one elsewhere that posts here with the browser's password."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    @property
    def token(self) -> str:
        """What the page's forms carry; another site cannot read it."""
        return hmac.new(self._secret, b"form", hashlib.sha256).hexdigest()

    def genuine(self, token: str, headers: Mapping[str, str]) -> bool:
        """Whether a posted form is the page's own."""
        origin = headers.get("origin", "")
        elsewhere = origin.partition("://")[2] != headers.get("host", "") if origin and origin != "null" else False
        foreign = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        return hmac.compare_digest(token.encode(), self.token.encode()) and not elsewhere and not foreign

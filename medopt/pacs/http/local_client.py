"""Sending to the running node of this machine by its own HTTP port."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from medopt.pacs.errors import PeerError
from medopt.pacs.settings import Node
from medopt.serving.server.auth import key_text

_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class _AnyName(HTTPAdapter):
    """Checks by whom a certificate is vouched for, not its name: it is the node's, and we call it by its address."""

    def init_poolmanager(self, *words: Any, **more: Any) -> Any:
        """As requests calls it."""
        return super().init_poolmanager(*words, **more, assert_hostname=False)


def post(node: Node, path: str, kind: str, pieces: Iterable[bytes]) -> None:
    """POST a body in pieces; raises Unanswered where the node cannot be asked. What it refuses stands in its log."""
    web = node.web
    assert web is not None
    host = _EVERY.get(web.host, web.host)
    host = f"[{host}]" if ":" in host else host
    key = key_text(web.key_file)
    headers = {"Content-Type": kind, "Host": f"localhost:{web.port}"} | ({"X-API-Key": key} if key else {})
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", _AnyName())
        if node.tls is not None:
            session.verify = str(node.tls.authority)
        try:
            answer = session.post(
                f"{'https' if web.tls else 'http'}://{host}:{web.port}{path}",
                data=iter(pieces),  # an iterator is sent as it comes
                headers=headers,
                timeout=600,
                allow_redirects=False,
            )
        except (requests.RequestException, OSError):
            raise PeerError("the node's own HTTP port is not reached") from None
    if answer.status_code in (401, 404, 413, 421):
        raise PeerError(f"the node's own HTTP port answered {answer.status_code}")

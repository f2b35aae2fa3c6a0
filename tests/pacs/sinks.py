"""A webhook's server and a mail server, real ones on sockets, that keep what they are sent."""

from __future__ import annotations

import base64
import json
import socketserver
import ssl
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class WebhookSink:
    """Takes POSTs; `status` is what it answers."""

    def __init__(self) -> None:
        self.status, self.requests = 200, list[tuple[dict[str, str], dict[str, Any]]]()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sink.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(sink.status)
                if sink.status == 302:
                    self.send_header("Location", f"{sink.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class MailSink:
    """Takes messages by SMTP (RFC 5321); `refuse`: it answers each message 451.

    With a certificate it offers STARTTLS (RFC 3207) and then AUTH PLAIN (RFC 4954); `logins` are what it was told.
    """

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        self.refuse, self.letters, self.logins = False, list[str](), list[list[str]]()
        tls = None
        if certificate is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(certificate, key)
        sink = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self._say("220 sink ESMTP")
                if self._converse("STARTTLS" if tls else "") and tls is not None:
                    self._say("220 go on")
                    with suppress(OSError), tls.wrap_socket(self.connection, server_side=True) as self.connection:
                        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
                        self._converse("AUTH PLAIN")

            def _converse(self, offer: str) -> bool:
                """Until the client goes, which is False, or asks for TLS."""
                for line in iter(self.rfile.readline, b""):
                    word = line.split()[0].upper() if line.split() else b""
                    if word in (b"QUIT", b"STARTTLS"):
                        return word == b"STARTTLS"
                    if word == b"DATA":
                        self._take()
                    elif word == b"EHLO" and offer:
                        self._say(f"250-sink\r\n250 {offer}")
                    elif word == b"AUTH":
                        sink.logins.append(base64.b64decode(line.split()[2]).decode().split("\0"))
                        self._say("235 welcome")
                    else:
                        self._say("250 ok")
                return False

            def _take(self) -> None:
                self._say("354 go on")
                lines = []
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(line)
                if not sink.refuse:
                    sink.letters.append(b"".join(lines).decode())
                self._say("451 not now" if sink.refuse else "250 taken")

            def _say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

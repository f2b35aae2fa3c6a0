"""HTTPS at the node's HTTP port, and to a service whose certificate is checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from certificates import make_certificates
from http_node import HttpNode
from peers import radiograph

from medopt.pacs.http.client import Client, post_to_node
from medopt.pacs.peers import PeerError, WebPeer

KEY = "0123456789abcdef-key"
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, its certificates of 127.0.0.1 and of another name, and an authority that signed none of them."""
    names = {"here": "IP:127.0.0.1", "named": "DNS:node.hospital"}
    folder = make_certificates(tmp_path_factory.mktemp("tls"), {"ca": names, "other": {}})
    (folder / "key").write_text(KEY)
    return folder


@pytest.fixture
def start_http_node(start_http_node: Callable[..., HttpNode], certificates: Path) -> Callable[[str], HttpNode]:
    def start(name: str) -> HttpNode:
        tls = {"certificate": certificates / f"{name}.pem", "key": certificates / f"{name}.key"}
        return start_http_node(
            web={"tls": True, "key_file": certificates / "key"}, tls=tls | {"authority": certificates / "ca.pem"}
        )

    return start


def test_the_certificate_is_checked(start_http_node: Callable[[str], HttpNode], certificates: Path) -> None:
    node = start_http_node("here")
    assert requests.get(f"{node.url}/health", verify=str(certificates / "ca.pem"), timeout=60).status_code == 200
    for authority, reason in (("ca.pem", "HTTP 405"), ("other.pem", "not trusted"), (None, "not trusted")):
        values: dict[str, Any] = {
            "url": f"{node.url}/dicom-web",
            "headers": {"X-API-Key": {"file": certificates / "key"}},
        }
        service = WebPeer.model_validate(values | {"authority": authority and certificates / authority})
        with Client(service, 5) as client:
            assert reason in client.check()


def test_the_command_reaches_the_node_under_any_name(
    start_http_node: Callable[[str], HttpNode], tmp_path: Path, certificates: Path
) -> None:
    node = start_http_node("named")
    body = (
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + radiograph(tmp_path / "1.dcm").read_bytes() + b"\r\n--b--"
    )
    content_type = 'multipart/related; type="application/dicom"; boundary=b'
    post_to_node(node.settings, "/dicom-web/studies", content_type, [body])
    assert len(node.files()) == 1
    tls = node.settings.tls
    assert tls is not None
    foreign = node.settings.model_copy(update={"tls": tls.model_copy(update={"authority": certificates / "other.pem"})})
    with pytest.raises(PeerError):
        post_to_node(foreign, "/dicom-web/studies", content_type, [body])

"""HTTPS at the node's door, and towards a service whose certificate has to be vouched for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from certificates import make_certificates
from peers import radiograph
from web_side import WebSide

from medopt.pacs.destinations import WebDestination
from medopt.pacs.errors import PeerError
from medopt.pacs.http.client import Client
from medopt.pacs.http.local_client import post

KEY = "0123456789abcdef-key"
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, its certificates of 127.0.0.1 and of another name, and an authority that vouches for nobody."""
    names = {"here": "IP:127.0.0.1", "named": "DNS:node.hospital"}
    folder = make_certificates(tmp_path_factory.mktemp("tls"), {"ca": names, "other": {}})
    (folder / "key").write_text(KEY)
    return folder


@pytest.fixture
def side(side: Callable[..., WebSide], certificates: Path) -> Callable[[str], WebSide]:
    def begin(name: str) -> WebSide:
        tls = {"certificate": certificates / f"{name}.pem", "key": certificates / f"{name}.key"}
        return side(
            web={"tls": True, "key_file": certificates / "key"}, tls=tls | {"authority": certificates / "ca.pem"}
        )

    return begin


def test_who_vouches_is_asked(side: Callable[[str], WebSide], certificates: Path) -> None:
    node = side("here")
    assert requests.get(f"{node.url}/health", verify=str(certificates / "ca.pem"), timeout=5).status_code == 200
    for authority, why in (("ca.pem", "HTTP 405"), ("other.pem", "not vouched for"), (None, "not vouched for")):
        told: dict[str, Any] = {
            "url": f"{node.url}/dicom-web",
            "headers": {"X-API-Key": {"file": certificates / "key"}},
        }
        place = WebDestination.model_validate(told | {"authority": authority and certificates / authority})
        with Client(place, 5) as client:
            assert why in client.answers()


def test_the_command_reaches_the_node_under_any_name(
    side: Callable[[str], WebSide], tmp_path: Path, certificates: Path
) -> None:
    node = side("named")
    body = (
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + radiograph(tmp_path / "1.dcm").read_bytes() + b"\r\n--b--"
    )
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    post(node.node, "/dicom-web/studies", kind, [body])
    assert len(node.files()) == 1
    tls = node.node.tls
    assert tls is not None
    foreign = node.node.model_copy(update={"tls": tls.model_copy(update={"authority": certificates / "other.pem"})})
    with pytest.raises(PeerError):
        post(foreign, "/dicom-web/studies", kind, [body])

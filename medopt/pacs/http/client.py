"""DICOMweb as a client: STOW-RS of stored files, QIDO-RS and WADO-RS, with bounded responses and no redirects.

And `post_to_node`, which sends to the running node of this machine by its own HTTP port.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from medopt.core.errors import ConfigError
from medopt.pacs.http.upload import DICOM
from medopt.pacs.peers import PeerError, PeerGone, WebPeer
from medopt.pacs.settings import NodeSettings
from medopt.serving.server.auth import key_text

DicomJson = Mapping[str, Any]
"""A data set in the DICOM JSON model (PS3.18 F.2), as another system wrote it."""
_JSON = "application/dicom+json"
_MAX_RESPONSE_BYTES = 64 * 1024 * 1024
_CHUNK = 256 * 1024
_REFERENCED, _FAILED, _SOP_UID, _REASON = "00081199", "00081198", "00081155", "00081197"
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Client:
    """A connection to one service, for one thread."""

    def __init__(self, service: WebPeer, timeout: float) -> None:
        self._service, self._timeout = service, timeout
        self._session = requests.Session()
        self._session.trust_env = False  # no .netrc: the node file says which credentials are sent
        self._session.verify = True if service.authority is None else str(service.authority)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def store(self, path: Path, sop_uid: str) -> str:
        """Send a file's bytes by STOW-RS; why that failed, '' if the service confirmed this instance."""
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        content_type = f'multipart/related; type="{DICOM}"; boundary={boundary}'
        headers = {"Content-Type": content_type, "Accept": _JSON}
        try:
            body = head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
            status, _, content = self._exchange("POST", "/studies", headers, body=body)
        except OSError:
            return "the result cannot be read from the spool"
        except (PeerError, ConfigError) as error:
            return str(error)
        return _store_failure(status, content, sop_uid)

    def check(self) -> str:
        """Ask the service a query that matches nothing; why that failed, '' if it answered."""
        try:
            self.search("/studies", {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.0", "limit": "1"})
        except (PeerError, ConfigError) as error:
            return str(error)
        return ""

    def search(self, path: str, query: Mapping[str, str]) -> list[DicomJson]:
        """QIDO-RS (PS3.18 10.6): the matching data sets; raises PeerError, ConfigError."""
        return self.search_page(path, query)[0]

    def search_page(self, path: str, query: Mapping[str, str]) -> tuple[list[DicomJson], bool]:
        """The same, and whether the service says that there are more (Warning 299, PS3.18 8.3.4.4.1; HTTP 206)."""
        status, headers, content = self._exchange("GET", path, {"Accept": _JSON}, query=query)
        if status == 204 or (status == 200 and not content.strip()):
            return [], False
        if status not in (200, 206):
            raise PeerError(f"the service answered HTTP {status}")
        try:
            matches = json.loads(content)
        except (ValueError, RecursionError):
            raise PeerError("the service did not answer in JSON") from None
        if not isinstance(matches, list) or not all(isinstance(match, dict) for match in matches):
            raise PeerError("the service's answer is not a list of data sets")
        return matches, status == 206 or headers.get("Warning", "").lstrip().startswith("299")

    def retrieve(self, path: str) -> tuple[str, Iterator[bytes]]:
        """WADO-RS (PS3.18 10.4) of instances in their stored transfer syntax: Content-Type and the body in chunks.

        Raises PeerError, ConfigError; iterating over the chunks raises PeerError, too.
        """
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        response = self._open("GET", path, {"Accept": accept})
        if response.status_code != 200:
            response.close()
            raise PeerError(f"the service answered HTTP {response.status_code}")
        return response.headers.get("Content-Type", ""), _chunks(response)

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], *, body: bytes | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:  # fmt: skip
        """The status, the headers and the whole body of a response."""
        response = self._open(method, path, headers, body=body, query=query)
        content = b""
        for chunk in _chunks(response):
            content += chunk
            if len(content) > _MAX_RESPONSE_BYTES:
                response.close()
                raise PeerError("the service's answer is too long")
        return response.status_code, response.headers, content

    def _open(
        self, method: str, path: str, headers: Mapping[str, str], *, body: bytes | None = None,
        query: Mapping[str, str] | None = None,
    ) -> requests.Response:  # fmt: skip
        configured = {name: secret.read() for name, secret in self._service.headers.items()}
        try:
            return self._session.request(
                method, self._service.url + path, params=query, headers={**headers, **configured}, data=body,
                timeout=self._timeout, allow_redirects=False, stream=True,
            )  # fmt: skip
        except requests.exceptions.SSLError:
            raise PeerGone("the service's certificate is not trusted (authority)") from None
        except requests.Timeout:
            raise PeerGone("the service did not answer in time") from None
        except (requests.RequestException, OSError):  # OSError: the authority's file
            raise PeerGone("the service is not reached") from None


def _chunks(response: requests.Response) -> Iterator[bytes]:
    try:
        # What has come, and not a whole chunk: the caller looks at the time between a service's small pieces.
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            yield chunk
    except (requests.RequestException, HTTPError, OSError):
        raise PeerGone("the connection broke off") from None
    finally:
        response.close()


def _store_failure(status: int, content: bytes, sop_uid: str) -> str:
    """Why an instance was not stored (PS3.18 10.5.3); '' if the response references it as stored."""
    try:
        response = json.loads(content)
    except (ValueError, RecursionError):
        response = {}
    response = response if isinstance(response, dict) else {}
    if sop_uid in [uid for item in _items(response, _REFERENCED) for uid in element_values(item, _SOP_UID)]:
        return ""
    reasons = [
        reason
        for item in _items(response, _FAILED)
        for reason in element_values(item, _REASON)
        if isinstance(reason, int)
    ]
    if reasons:
        return f"the destination answered HTTP {status}, 0x{reasons[0]:04X}"
    if status == 200:
        return "the destination did not confirm this instance"
    return f"the destination answered HTTP {status}"


def _items(dataset: DicomJson, tag: str) -> list[DicomJson]:
    return [item for item in element_values(dataset, tag) if isinstance(item, dict)]


def element_values(dataset: DicomJson, tag: str) -> list[object]:
    """The values of an element, [] if it has none."""
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


class _AnyHostName(HTTPAdapter):
    """Verifies a certificate's signature but not its name: the node is called by its address."""

    def init_poolmanager(self, *args: Any, **options: Any) -> Any:
        """As requests calls it."""
        return super().init_poolmanager(*args, **options, assert_hostname=False)


def post_to_node(settings: NodeSettings, path: str, content_type: str, chunks: Iterable[bytes]) -> None:
    """POST a body to the node of this machine; raises PeerError. The node's log says which instances it refuses."""
    web = settings.web
    assert web is not None
    host = _WILDCARDS.get(web.host, web.host)
    host = f"[{host}]" if ":" in host else host
    key = key_text(web.key_file)
    headers = {"Content-Type": content_type, "Host": f"localhost:{web.port}"} | ({"X-API-Key": key} if key else {})
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", _AnyHostName())
        if settings.tls is not None:
            session.verify = str(settings.tls.authority)
        try:
            response = session.post(
                f"{'https' if web.tls else 'http'}://{host}:{web.port}{path}",
                data=iter(chunks),  # requests sends an iterator chunk by chunk
                headers=headers,
                timeout=600,
                allow_redirects=False,
            )
        except (requests.RequestException, OSError):
            raise PeerError("the node's own HTTP port is not reached") from None
    if response.status_code in (401, 404, 413, 421):
        raise PeerError(f"the node's own HTTP port answered {response.status_code}")

"""DICOMweb as a client: STOW-RS of stored bytes, QIDO-RS and WADO-RS, with bounded answers and no redirects."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from medopt.core.errors import ConfigError
from medopt.pacs.destinations import WebDestination
from medopt.pacs.errors import PeerError
from medopt.pacs.http.multipart import DICOM

_JSON = "application/dicom+json"
_LARGEST_ANSWER = 64 * 1024 * 1024
_PIECE = 256 * 1024
_REFERENCED, _FAILED, _SOP_UID, _REASON = "00081199", "00081198", "00081155", "00081197"


class Client:
    """A connection to one service, for one thread."""

    def __init__(self, place: WebDestination, timeout: float) -> None:
        self._place, self._timeout = place, timeout
        self._session = requests.Session()
        self._session.trust_env = False  # no .netrc: the node file says what is sent
        self._session.verify = True if place.authority is None else str(place.authority)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._session.close()

    def store(self, path: Path, sop_uid: str) -> str:
        """Send a file's bytes by STOW-RS; why that failed, empty where the service confirmed this instance."""
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        try:
            body = head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
            kind = f'multipart/related; type="{DICOM}"; boundary={boundary}'
            status, content = self._ask("POST", "/studies", {"Content-Type": kind, "Accept": _JSON}, body)
        except OSError:
            return "the result cannot be read from the spool"
        except (PeerError, ConfigError) as error:
            return str(error)
        return _confirmed(status, content, sop_uid)

    def answers(self) -> str:
        """Why the service cannot be asked, empty where it can: a query that nothing fits."""
        try:
            self.find("/studies", {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.0", "limit": "1"})
        except (PeerError, ConfigError) as error:
            return str(error)
        return ""

    def find(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        """QIDO-RS (PS3.18 10.6): the data sets as JSON objects; raises Unanswered, ConfigError."""
        status, content = self._ask("GET", path, {"Accept": _JSON}, params=query)
        if status == 204 or (status == 200 and not content.strip()):
            return []
        if status != 200:
            raise PeerError(f"the service answered HTTP {status}")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            raise PeerError("the service answered no JSON") from None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise PeerError("the service answered something else than a list of data sets")
        return found

    def retrieve(self, path: str) -> tuple[str, Iterator[bytes]]:
        """WADO-RS (PS3.18 10.4) of whole instances as they are stored there: Content-Type and the body in pieces.

        Raises Unanswered, ConfigError; the pieces raise Unanswered, too.
        """
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        answer = self._open("GET", path, {"Accept": accept})
        if answer.status_code != 200:
            answer.close()
            raise PeerError(f"the service answered HTTP {answer.status_code}")
        return answer.headers.get("Content-Type", ""), _pieces(answer)

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None, **more: Any
    ) -> tuple[int, bytes]:
        answer = self._open(method, path, headers, body, **more)
        found = b""
        for piece in _pieces(answer):
            found += piece
            if len(found) > _LARGEST_ANSWER:
                answer.close()
                raise PeerError("the service's answer is too long")
        return answer.status_code, found

    def _open(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None, **more: Any
    ) -> requests.Response:
        told = {name: secret.read() for name, secret in self._place.headers.items()}
        try:
            return self._session.request(
                method, self._place.url + path, headers={**headers, **told}, data=body, timeout=self._timeout,
                allow_redirects=False, stream=True, **more,
            )  # fmt: skip
        except requests.exceptions.SSLError:
            raise PeerError("the service's certificate is not vouched for (authority)") from None
        except requests.Timeout:
            raise PeerError("the service did not answer in time") from None
        except (requests.RequestException, OSError):  # OSError: the authority's file
            raise PeerError("the service is not reached") from None


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    try:
        yield from answer.iter_content(_PIECE)
    except (requests.RequestException, OSError):
        raise PeerError("the connection broke off") from None
    finally:
        answer.close()


def _confirmed(status: int, content: bytes, sop_uid: str) -> str:
    """What PS3.18 10.5.3 says of one instance; empty where it is stored."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        told = {}
    told = told if isinstance(told, dict) else {}
    if sop_uid in _uids(told, _REFERENCED):
        return ""
    reasons = [reason for item in _items(told, _FAILED) for reason in _values(item, _REASON) if isinstance(reason, int)]
    if reasons:
        return f"the destination answered HTTP {status}, 0x{reasons[0]:04X}"
    if status == 200:
        return "the destination did not confirm this instance"
    return f"the destination answered HTTP {status}"


def _uids(told: Mapping[str, Any], tag: str) -> list[Any]:
    return [value for item in _items(told, tag) for value in _values(item, _SOP_UID)]


def _items(told: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    return [item for item in _values(told, tag) if isinstance(item, dict)]


def _values(told: Mapping[str, Any], tag: str) -> list[Any]:
    element = told.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []

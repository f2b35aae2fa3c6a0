"""A PACS asked by QIDO-RS and WADO-RS (PS3.18 10.6, 10.4); what it sends is handed to whoever takes it in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

from medopt.core.errors import ConfigError
from medopt.pacs.destinations import WebDestination
from medopt.pacs.errors import PeerError
from medopt.pacs.http.client import Client
from medopt.pacs.http.multipart import Malformed, Related, boundary_of
from medopt.pacs.http.upload import Upload
from medopt.pacs.intake import Intake, is_uid
from medopt.pacs.query_retrieve.source import MOST_STUDIES, Stopping
from medopt.pacs.settings import Node
from medopt.pacs.spool import Spool

Deliver = Callable[[str, str, Iterable[bytes]], None]
"""Takes the study, the Content-Type and the body of an answer; raises Unanswered."""
_PAGE = 500
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


class WebSource:
    """One DICOMweb service."""

    def __init__(self, client: Client, deliver: Deliver, stopping: Stopping) -> None:
        self._client, self._deliver, self._stopping = client, deliver, stopping

    def studies(self, since: date, modality: str) -> list[str]:
        """As Source."""
        days = f"{since:%Y%m%d}-{datetime.now().date() + timedelta(days=1):%Y%m%d}"
        return self._found("/studies", _STUDY, {"StudyDate": days, "ModalitiesInStudy": modality})

    def series(self, study: str, modality: str) -> list[str]:
        """As Source."""
        return self._found(f"/studies/{study}/series", _SERIES, {"Modality": modality})

    def instances(self, study: str, series: str) -> list[str]:
        """As Source."""
        return self._found(f"/studies/{study}/series/{series}/instances", _INSTANCE, {})

    def fetch(self, study: str, series: str, instances: Sequence[str]) -> None:
        """As Source."""
        place = f"/studies/{study}/series/{series}"
        for path in [f"{place}/instances/{one}" for one in instances] or [place]:
            kind, pieces = self._client.retrieve(path)
            self._deliver(study, kind, self._watched(pieces))

    def _watched(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stopping():
                raise PeerError("the node stops")
            yield piece

    def _found(self, path: str, tag: str, query: dict[str, str]) -> list[str]:
        """Page by page, until one brings nothing new."""
        found: dict[str, None] = {}
        while True:
            if self._stopping():
                raise PeerError("the node stops")
            page = self._client.find(path, {**query, "limit": str(_PAGE), "offset": str(len(found))})
            before = len(found)
            for item in page:
                modality = _value(item, _MODALITY)
                uid = _value(item, tag)
                if is_uid(uid) and ("Modality" not in query or modality in ("", query["Modality"])):
                    found[uid] = None
            if len(page) < _PAGE or len(found) == before:
                return list(found)
            if len(found) > MOST_STUDIES:
                raise PeerError(f"the source names more than {MOST_STUDIES} studies; take fewer days")


def _value(item: dict[str, Any], tag: str) -> str:
    """The first value of an element of DICOM JSON, '' where it has none."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""


@contextmanager
def web_source(node: Node, place: WebDestination, deliver: Deliver, stopping: Stopping) -> Iterator[WebSource]:
    """A connection until the end of the block."""
    with Client(place, max(60.0, node.sending.timeout_seconds)) as client:
        yield WebSource(client, deliver, stopping)


def into(intake: Intake, spool: Spool, node: Node) -> Deliver:
    """Deliver to a node in this process. What it refuses it says in its log and audit."""

    def deliver(study: str, kind: str, pieces: Iterable[bytes]) -> None:
        upload = Upload(intake, spool, node.limits.instance_bytes, study)
        try:
            related = Related(boundary_of(kind), upload)
            for piece in pieces:
                related.feed(piece)
            related.close()
        except Malformed:
            raise PeerError("the source's answer is not multipart/related, or breaks off") from None
        finally:
            upload.close()

    return deliver


def over(node: Node) -> Deliver:
    """Deliver to a node in another process of this machine, by its STOW-RS; raises ConfigError where it has none."""
    from medopt.pacs.http.local_client import post

    if node.web is None or not node.web.stow:
        raise ConfigError(
            "What comes by WADO-RS goes to the running node by STOW-RS: say `stow: true` in its section web. Or leave "
            "it to the node itself: pull.every_minutes."
        )

    def deliver(study: str, kind: str, pieces: Iterable[bytes]) -> None:
        post(node, f"/dicom-web/studies/{study}", kind, pieces)

    return deliver

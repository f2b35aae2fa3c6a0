"""A PACS that is queried by QIDO-RS, and whose instances come by WADO-RS (PS3.18 10.6, 10.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta

from medopt.core.errors import ConfigError
from medopt.pacs.http.client import Client, DicomJson, element_values, post_to_node
from medopt.pacs.http.multipart import MultipartError, RelatedParser, boundary_of
from medopt.pacs.http.upload import Upload
from medopt.pacs.intake import Intake, is_uid
from medopt.pacs.peers import PeerError, WebPeer
from medopt.pacs.query_retrieve.reconcile import MAX_STUDIES, Stopping
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import Spool

Deliver = Callable[[str, str, Iterable[bytes]], None]
"""Stores the instances of a response: takes the study's UID, the Content-Type and the body. Raises PeerError."""
_PAGE_SIZE = 500
_STUDY_UID, _SERIES_UID, _SOP_UID, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


class WebSource:
    """One DICOMweb service (a `StudySource`)."""

    def __init__(self, client: Client, deliver: Deliver, stopping: Stopping) -> None:
        self._client, self._deliver, self._stopping = client, deliver, stopping

    def studies(self, since: date, modality: str) -> list[str]:
        """UIDs of the studies of a day or later that may hold series of a modality."""
        days = f"{since:%Y%m%d}-{datetime.now().date() + timedelta(days=1):%Y%m%d}"
        return self._search("/studies", _STUDY_UID, {"StudyDate": days, "ModalitiesInStudy": modality})

    def series(self, study_uid: str, modality: str) -> list[str]:
        """UIDs of a study's series of one modality."""
        return self._search(f"/studies/{study_uid}/series", _SERIES_UID, {"Modality": modality})

    def instances(self, study_uid: str, series_uid: str) -> list[str]:
        """UIDs of a series' instances."""
        return self._search(f"/studies/{study_uid}/series/{series_uid}/instances", _SOP_UID, {})

    def fetch(self, study_uid: str, series_uid: str, instances: Sequence[str]) -> None:
        """Retrieve the instances one by one, or, if none is named, the whole series."""
        series = f"/studies/{study_uid}/series/{series_uid}"
        for path in [f"{series}/instances/{sop_uid}" for sop_uid in instances] or [series]:
            content_type, chunks = self._client.retrieve(path)
            self._deliver(study_uid, content_type, self._until_stopped(chunks))

    def _until_stopped(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._raise_if_stopping()
            yield chunk

    def _raise_if_stopping(self) -> None:
        if self._stopping():
            raise PeerError("the node stops")

    def _search(self, path: str, tag: str, query: dict[str, str]) -> list[str]:
        """The matching UIDs, page by page, until a page brings nothing new."""
        uids: dict[str, None] = {}
        while True:
            self._raise_if_stopping()
            page = self._client.search(path, {**query, "limit": str(_PAGE_SIZE), "offset": str(len(uids))})
            before = len(uids)
            for match in page:
                uid, modality = _first_value(match, tag), _first_value(match, _MODALITY)
                if is_uid(uid) and ("Modality" not in query or modality in ("", query["Modality"])):
                    uids[uid] = None
            if len(page) < _PAGE_SIZE or len(uids) == before:
                return list(uids)
            if len(uids) > MAX_STUDIES:
                raise PeerError(f"the source lists more than {MAX_STUDIES} studies; take fewer days")


def _first_value(dataset: DicomJson, tag: str) -> str:
    """The first value of an element, '' if it has none."""
    values = element_values(dataset, tag)
    return str(values[0]) if values else ""


@contextmanager
def web_source(settings: NodeSettings, service: WebPeer, deliver: Deliver, stopping: Stopping) -> Iterator[WebSource]:
    """A connection until the end of the block."""
    with Client(service, max(60.0, settings.sending.timeout_seconds)) as client:
        yield WebSource(client, deliver, stopping)


def deliver_to_intake(intake: Intake, spool: Spool, settings: NodeSettings) -> Deliver:
    """Store in a node of this process, which writes what it refuses to its log and audit."""

    def deliver(study_uid: str, content_type: str, chunks: Iterable[bytes]) -> None:
        upload = Upload(intake, spool, settings.limits.instance_bytes, study_uid)
        try:
            parser = RelatedParser(boundary_of(content_type), upload)
            for chunk in chunks:
                parser.feed(chunk)
            parser.close()
        except MultipartError:
            raise PeerError("the source's answer is not multipart/related, or breaks off") from None
        finally:
            upload.close()

    return deliver


def deliver_to_running_node(settings: NodeSettings) -> Deliver:
    """Store in a node of another process on this machine, by its STOW-RS; raises ConfigError if that is off."""
    if settings.web is None or not settings.web.stow:
        raise ConfigError(
            "What comes by WADO-RS goes to the running node by STOW-RS: set `stow: true` in its section web. Or leave "
            "the pull to the node itself: pull.every_minutes."
        )

    def deliver(study_uid: str, content_type: str, chunks: Iterable[bytes]) -> None:
        post_to_node(settings, f"/dicom-web/studies/{study_uid}", content_type, chunks)

    return deliver

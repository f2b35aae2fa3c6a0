"""A PACS that is queried by QIDO-RS, and whose instances come by WADO-RS (PS3.18 10.6, 10.4)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta

from medopt.core.errors import ConfigError
from medopt.pacs.http.client import Client, DicomJson, element_values, post_to_node
from medopt.pacs.http.upload import Upload, dicom_boundary
from medopt.pacs.intake import Intake, is_uid
from medopt.pacs.peers import PeerError, PeerGone, WebPeer
from medopt.pacs.query_retrieve.reconcile import MAX_STUDIES, Listing, Stopping
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import Spool
from medopt.serving.server.multipart import MultipartError, MultipartParser

Deliver = Callable[[str, str, Iterable[bytes]], None]
"""Stores the instances of a response: takes the study's UID, the Content-Type and the body. Raises PeerError."""
_PAGE_SIZE = 500
_STUDY_UID, _SERIES_UID, _SOP_UID, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


class WebSource:
    """One DICOMweb service (a `StudySource`)."""

    def __init__(self, client: Client, deliver: Deliver, stopping: Stopping, seconds: float) -> None:
        self._client, self._deliver, self._stopping, self._seconds = client, deliver, stopping, seconds

    def studies(self, since: date, modality: str) -> Listing:
        """The studies of a day or later that may hold series of a modality."""
        days = f"{since:%Y%m%d}-{datetime.now().date() + timedelta(days=1):%Y%m%d}"
        return self._search("/studies", _STUDY_UID, {"StudyDate": days, "ModalitiesInStudy": modality})

    def series(self, study_uid: str, modality: str) -> Listing:
        """A study's series of one modality."""
        return self._search(f"/studies/{study_uid}/series", _SERIES_UID, {"Modality": modality})

    def instances(self, study_uid: str, series_uid: str) -> Listing:
        """A series' instances."""
        return self._search(f"/studies/{study_uid}/series/{series_uid}/instances", _SOP_UID, {})

    def fetch(self, study_uid: str, series_uid: str, instances: Sequence[str]) -> None:
        """Retrieve the instances one by one, or, if none is named, the whole series."""
        series = f"/studies/{study_uid}/series/{series_uid}"
        for path in [f"{series}/instances/{sop_uid}" for sop_uid in instances] or [series]:
            content_type, chunks = self._client.retrieve(path)
            self._deliver(study_uid, content_type, self._in_time(chunks))

    def _in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        deadline = time.monotonic() + self._seconds
        for chunk in chunks:
            self._check(deadline)
            yield chunk

    def _check(self, deadline: float) -> None:
        if self._stopping():
            raise PeerGone("the node stops")
        if time.monotonic() > deadline:
            raise PeerGone("the service took too long (pull.operation_minutes)")

    def _search(self, path: str, tag: str, query: dict[str, str]) -> Listing:
        """The matching UIDs, page by page until an empty one: a service may give fewer than it is asked for.

        The offset counts entries, not UIDs (PS3.18 8.3.4.4). A service that does not know it repeats its first page.
        """
        uids: dict[str, None] = {}
        entries: set[str] = set()
        received = invalid = 0
        deadline, more = time.monotonic() + self._seconds, False
        while True:
            self._check(deadline)
            paging = {"limit": str(_PAGE_SIZE), "offset": str(received)}
            page, more_now = self._client.search_page(path, {**query, **paging})
            new = [match for match in page if _key(match, tag) not in entries]
            if not new:
                return Listing(tuple(uids), invalid, cut=bool(page) and (more or more_now or received >= _PAGE_SIZE))
            received, more = received + len(page), more_now
            entries.update(_key(match, tag) for match in new)
            for match in new:
                uid, modality = _first_value(match, tag), _first_value(match, _MODALITY)
                if "Modality" in query and modality not in ("", query["Modality"]):
                    continue
                if is_uid(uid):
                    uids[uid] = None
                else:
                    invalid += 1
            if received > MAX_STUDIES:
                raise PeerError(f"the source lists more than {MAX_STUDIES} entries; take fewer days")


def _key(match: DicomJson, tag: str) -> str:
    """What distinguishes an entry from the others of a list."""
    return _first_value(match, tag) or json.dumps(match, sort_keys=True)


def _first_value(dataset: DicomJson, tag: str) -> str:
    """The first value of an element, '' if it has none."""
    values = element_values(dataset, tag)
    return str(values[0]) if values else ""


@contextmanager
def web_source(settings: NodeSettings, service: WebPeer, deliver: Deliver, stopping: Stopping) -> Iterator[WebSource]:
    """A connection until the end of the block."""
    with Client(service, max(60.0, settings.sending.timeout_seconds)) as client:
        assert settings.pull is not None
        yield WebSource(client, deliver, stopping, settings.pull.operation_seconds)


def deliver_to_intake(intake: Intake, spool: Spool, settings: NodeSettings) -> Deliver:
    """Store in a node of this process, which writes what it refuses to its log and audit."""

    def deliver(study_uid: str, content_type: str, chunks: Iterable[bytes]) -> None:
        upload = Upload(intake, spool, settings.limits.instance_bytes, study_uid)
        try:
            parser = MultipartParser(dicom_boundary(content_type), upload)
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

"""A PACS that is queried by C-FIND and sends to the node by C-MOVE (PS3.4 C.4.1, C.4.2, Study Root)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import DEFAULT_TRANSFER_SYNTAXES
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind as Find,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelMove as Move,
)

from medopt.pacs.association import associate
from medopt.pacs.intake import is_uid
from medopt.pacs.peers import DimsePeer, PeerError, PeerGone
from medopt.pacs.query_retrieve.reconcile import MAX_STUDIES, Listing, Stopping
from medopt.pacs.settings import NodeSettings

_PENDING = (0xFF00, 0xFF01)
_SOME_FAILED = 0xB000
_SILENCE_SECONDS = 600.0
"""A PACS may say nothing while it sends (PS3.7 9.1.4: pending responses are optional) or fetches from its archive."""
_MOVE_FAILURES = {
    0xA801: "it does not know this node's AE title as a place to send to",
    0xA701: "it is out of resources",
}
_OTHER_MOVE_FAILURE = "it does not know this node, cannot reach it, or was refused by it"
_UID_KEYWORDS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
Responses = Iterator[tuple[Dataset, Dataset | None]]


class DimseSource:
    """One association with a PACS (a `StudySource`)."""

    def __init__(self, association: Association, settings: NodeSettings, stopping: Stopping) -> None:
        assert settings.pull is not None
        self._association, self._aet, self._stopping = association, settings.aet, stopping
        self._seconds = settings.pull.operation_seconds

    def studies(self, since: date, modality: str) -> Listing:
        """The studies of a day or later. A PACS that cannot select by modality lists all of the period."""
        return self._find("STUDY", StudyDate=f"{since:%Y%m%d}-", ModalitiesInStudy=modality)

    def series(self, study_uid: str, modality: str) -> Listing:
        """A study's series of one modality."""
        return self._find("SERIES", StudyInstanceUID=study_uid, Modality=modality)

    def instances(self, study_uid: str, series_uid: str) -> Listing:
        """A series' instances."""
        return self._find("IMAGE", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)

    def fetch(self, study_uid: str, series_uid: str, instances: Sequence[str]) -> None:
        """Request the instances one by one, because not every PACS understands lists of UIDs; or the whole series."""
        for sop_uid in instances or [""]:
            self._move(study_uid, series_uid, sop_uid)

    def _find(self, level: str, **keys: str) -> Listing:
        """C-FIND: the UIDs at a level that match the keys."""
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        uid_keyword = _UID_KEYWORDS[level]
        if uid_keyword not in query:
            setattr(query, uid_keyword, "")
        uids: dict[str, None] = {}
        modality, entries, invalid = keys.get("Modality"), 0, 0
        for status, match in self._responses(lambda: self._association.send_c_find(query, Find), Find):
            if status in _PENDING:
                entries += 1
                if entries > MAX_STUDIES:
                    self._end(Find)
                    raise PeerGone(f"the source lists more than {MAX_STUDIES} entries; take fewer days")
                if match is None:  # an identifier that cannot be decoded
                    invalid += 1
                    continue
                if modality not in (None, str(match.get("Modality") or modality)):
                    continue
                uid = str(match.get(uid_keyword) or "").rstrip("\0 ")
                if is_uid(uid):
                    uids[uid] = None
                else:
                    invalid += 1
            elif status != 0x0000:
                raise PeerError(f"the source answered C-FIND with 0x{status:04X}")
        return Listing(tuple(uids), invalid)

    def _move(self, study_uid: str, series_uid: str, sop_uid: str) -> None:
        """C-MOVE of one instance, or, if its UID is empty, of the series."""
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE" if sop_uid else "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
        if sop_uid:
            query.SOPInstanceUID = sop_uid
        for status, _ in self._responses(lambda: self._association.send_c_move(query, self._aet, Move), Move):
            if status not in (*_PENDING, 0x0000, _SOME_FAILED):
                reason = _MOVE_FAILURES.get(status, _OTHER_MOVE_FAILURE)
                raise PeerError(f"the source answered C-MOVE with 0x{status:04X}: {reason}")

    def _responses(self, send: Callable[[], Responses], model: UID) -> Iterator[tuple[int, Dataset | None]]:
        """Responses until the last; a peer that answers `pending` for ever is cut off (`operation_minutes`)."""
        deadline = time.monotonic() + self._seconds
        try:
            for response, dataset in send():
                status = response.get("Status")
                if status is None:
                    raise PeerGone("the source did not respond in time, or the connection broke off")
                if self._stopping():
                    self._end(model)
                    raise PeerGone("the node stops")
                if time.monotonic() > deadline and status in _PENDING:
                    self._end(model)
                    raise PeerGone("the source answered `pending` for too long (pull.operation_minutes)")
                yield int(status), dataset
        except (ValueError, RuntimeError):  # no context was accepted, or the association has ended
            raise PeerGone("the source does not offer this query, or the connection broke off") from None

    def _end(self, model: UID) -> None:
        """Cancel the operation (PS3.7 9.3.2.3), and abort: the source may ignore that."""
        with suppress(Exception):
            self._association.send_c_cancel(1, query_model=model)
        self._association.abort()


@contextmanager
def dimse_source(settings: NodeSettings, peer: DimsePeer, stopping: Stopping) -> Iterator[DimseSource]:
    """An association until the end of the block; raises PeerError if it is not established."""
    assert settings.pull is not None
    silence = min(_SILENCE_SECONDS, settings.pull.operation_seconds)
    association = associate(settings, peer, [Find, Move], DEFAULT_TRANSFER_SYNTAXES, silence_seconds=silence)
    if not association.is_established:
        rejected = association.is_rejected
        raise PeerGone("the source rejected the association" if rejected else "the source is not reached")
    try:
        yield DimseSource(association, settings, stopping)
    finally:
        if association.is_established:
            association.release()

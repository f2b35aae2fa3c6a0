"""A PACS that is queried by C-FIND and sends to the node by C-MOVE (PS3.4 C.4.1, C.4.2, Study Root)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date

from pydicom import Dataset
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
from medopt.pacs.peers import DimsePeer, PeerError
from medopt.pacs.query_retrieve.reconcile import MAX_STUDIES, Stopping
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
        self._association, self._aet, self._stopping = association, settings.aet, stopping

    def studies(self, since: date, modality: str) -> list[str]:
        """UIDs of studies. A PACS that cannot select by modality lists all studies of the period."""
        return self._find("STUDY", StudyDate=f"{since:%Y%m%d}-", ModalitiesInStudy=modality)

    def series(self, study_uid: str, modality: str) -> list[str]:
        """UIDs of a study's series of one modality."""
        return self._find("SERIES", StudyInstanceUID=study_uid, Modality=modality)

    def instances(self, study_uid: str, series_uid: str) -> list[str]:
        """UIDs of a series' instances."""
        return self._find("IMAGE", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)

    def fetch(self, study_uid: str, series_uid: str, instances: Sequence[str]) -> None:
        """Request the instances one by one, because not every PACS understands lists of UIDs; or the whole series."""
        for sop_uid in instances or [""]:
            self._move(study_uid, series_uid, sop_uid)

    def _find(self, level: str, **keys: str) -> list[str]:
        """C-FIND: the UIDs at a level that match the keys."""
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        uid_keyword = _UID_KEYWORDS[level]
        if uid_keyword not in query:
            setattr(query, uid_keyword, "")
        uids: dict[str, None] = {}
        modality = keys.get("Modality")
        for status, match in self._responses(lambda: self._association.send_c_find(query, Find)):
            if status in _PENDING and match is not None:
                uid = str(match.get(uid_keyword) or "").rstrip("\0 ")
                if is_uid(uid) and modality in (None, str(match.get("Modality") or modality)):
                    uids[uid] = None
                if len(uids) > MAX_STUDIES:
                    raise PeerError(f"the source lists more than {MAX_STUDIES} studies; take fewer days")
            elif status != 0x0000:
                raise PeerError(f"the source answered C-FIND with 0x{status:04X}")
        return list(uids)

    def _move(self, study_uid: str, series_uid: str, sop_uid: str) -> None:
        """C-MOVE of one instance, or, if its UID is empty, of the series."""
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE" if sop_uid else "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
        if sop_uid:
            query.SOPInstanceUID = sop_uid
        for status, _ in self._responses(lambda: self._association.send_c_move(query, self._aet, Move)):
            if status not in (*_PENDING, 0x0000, _SOME_FAILED):
                reason = _MOVE_FAILURES.get(status, _OTHER_MOVE_FAILURE)
                raise PeerError(f"the source answered C-MOVE with 0x{status:04X}: {reason}")

    def _responses(self, send: Callable[[], Responses]) -> Iterator[tuple[int, Dataset | None]]:
        try:
            for response, dataset in send():
                status = response.get("Status")
                if status is None:
                    raise PeerError("the source did not respond in time, or the connection broke off")
                if self._stopping():
                    self._association.abort()
                    raise PeerError("the node stops")
                yield int(status), dataset
        except (ValueError, RuntimeError):  # no context was accepted, or the association has ended
            raise PeerError("the source does not offer this query, or the connection broke off") from None


@contextmanager
def dimse_source(settings: NodeSettings, peer: DimsePeer, stopping: Stopping) -> Iterator[DimseSource]:
    """An association until the end of the block; raises PeerError if it is not established."""
    association = associate(settings, peer, [Find, Move], DEFAULT_TRANSFER_SYNTAXES, silence_seconds=_SILENCE_SECONDS)
    if not association.is_established:
        rejected = association.is_rejected
        raise PeerError("the source rejected the association" if rejected else "the source is not reached")
    try:
        yield DimseSource(association, settings, stopping)
    finally:
        if association.is_established:
            association.release()

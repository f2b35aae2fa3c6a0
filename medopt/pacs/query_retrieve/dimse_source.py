"""A PACS asked by C-FIND, which sends to the node by C-MOVE (PS3.4 C.4.1, C.4.2, Study Root)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

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
from medopt.pacs.destinations import Destination
from medopt.pacs.errors import PeerError
from medopt.pacs.intake import is_uid
from medopt.pacs.query_retrieve.source import MOST_STUDIES, Stopping
from medopt.pacs.settings import Node

_PENDING = (0xFF00, 0xFF01)
_SOME_FAILED = 0xB000
_SILENCE_SECONDS = 600.0
"""A PACS may say nothing while it sends (PS3.7 9.1.4: pending answers are optional) or fetches from its archive."""
_WHY = {0xA801: "it does not know this node's AE title as a place to send to", 0xA701: "it is out of resources"}
_OTHER = "it does not know this node, cannot reach it, or was refused by it"
_UIDS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


class DimseSource:
    """One association with a PACS."""

    def __init__(self, link: Association, node: Node, stopping: Stopping) -> None:
        self._link, self._node, self._stopping = link, node, stopping

    def studies(self, since: date, modality: str) -> list[str]:
        """As Source. A PACS that cannot select by modality names all studies of the time."""
        return self._found("STUDY", StudyDate=f"{since:%Y%m%d}-", ModalitiesInStudy=modality)

    def series(self, study: str, modality: str) -> list[str]:
        """As Source."""
        return self._found("SERIES", StudyInstanceUID=study, Modality=modality)

    def instances(self, study: str, series: str) -> list[str]:
        """As Source."""
        return self._found("IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series)

    def fetch(self, study: str, series: str, instances: Sequence[str]) -> None:
        """As Source. Instances are asked for one by one: lists of UIDs are not understood everywhere."""
        for instance in instances or [""]:
            self._move(study, series, instance)

    def _found(self, level: str, **keys: str) -> list[str]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for name, value in keys.items():
            setattr(query, name, value)
        wanted = _UIDS[level]
        if wanted not in query:
            setattr(query, wanted, "")
        found: dict[str, None] = {}
        modality = keys.get("Modality")
        for status, answer in self._asked(lambda: self._link.send_c_find(query, Find)):
            if status in _PENDING and answer is not None:
                uid = str(answer.get(wanted) or "").rstrip("\0 ")
                if is_uid(uid) and modality in (None, str(answer.get("Modality") or modality)):
                    found[uid] = None
                if len(found) > MOST_STUDIES:
                    raise PeerError(f"the source names more than {MOST_STUDIES} studies; take fewer days")
            elif status != 0x0000:
                raise PeerError(f"the source answered C-FIND with 0x{status:04X}")
        return list(found)

    def _move(self, study: str, series: str, instance: str) -> None:
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE" if instance else "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = study, series
        if instance:
            query.SOPInstanceUID = instance
        for status, _ in self._asked(lambda: self._link.send_c_move(query, self._node.aet, Move)):
            if status not in (*_PENDING, 0x0000, _SOME_FAILED):
                raise PeerError(f"the source answered C-MOVE with 0x{status:04X}: {_WHY.get(status, _OTHER)}")

    def _asked(self, send: Any) -> Iterator[tuple[int, Dataset | None]]:
        try:
            for answer, dataset in send():
                status = answer.get("Status")
                if status is None:
                    raise PeerError("the source did not answer in time, or the connection broke off")
                if self._stopping():
                    self._link.abort()
                    raise PeerError("the node stops")
                yield int(status), dataset
        except (ValueError, RuntimeError):  # no context was accepted, or the association has ended
            raise PeerError("the source does not offer this query, or the connection broke off") from None


@contextmanager
def dimse_source(node: Node, place: Destination, stopping: Stopping) -> Iterator[DimseSource]:
    """An association until the end of the block; raises Unanswered where there is none."""
    link = associate(node, place, [Find, Move], DEFAULT_TRANSFER_SYNTAXES, silence_seconds=_SILENCE_SECONDS)
    if not link.is_established:
        raise PeerError("the source rejected the association" if link.is_rejected else "the source is not reached")
    try:
        yield DimseSource(link, node, stopping)
    finally:
        if link.is_established:
            link.release()

"""STOW-RS in (PS3.18 10.5): POST multipart/related to /dicom-web/studies or /dicom-web/studies/{uid}.

The answer is 200 only when each instance is safe on disk and in the ledger, as C-STORE's 0x0000.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from pydicom import Dataset
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from medopt.pacs.http.multipart import Malformed, Related, boundary_of
from medopt.pacs.http.upload import Failed, Upload
from medopt.pacs.intake import NOT_UNDERSTOOD, OUT_OF_ROOM, Intake
from medopt.pacs.settings import Node
from medopt.pacs.spool import Spool

_AT_ONCE = 16
_JSON = "application/dicom+json"
_PIECE = 1 << 20


class Stow:
    """Takes requests; a few at once, the others are asked to come again."""

    def __init__(self, node: Node, spool: Spool, intake: Intake) -> None:
        assert node.web is not None
        self._node, self._spool, self._intake = node, spool, intake
        self._most_bytes = node.web.body_bytes
        self._at_once = 0

    async def store(self, request: Request) -> Response:
        """Answer one request."""
        boundary = self._boundary(request)
        study = request.path_params.get("study", "")
        if self._at_once >= _AT_ONCE:
            raise HTTPException(503, "Too many at once; try again.", {"Retry-After": "5"})
        most = self._node.limits.instance_bytes
        upload = Upload(self._intake, self._spool, most, study)
        self._at_once += 1
        try:
            wrong = await self._read(request, Related(boundary, upload))
        finally:
            self._at_once -= 1
            await run_in_threadpool(upload.close)
        return _answer(upload, wrong)

    def _boundary(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "Content-Encoding is not taken: send the body as it is.")
        if not _takes_json(request.headers.get("accept", "*/*")):
            raise HTTPException(406, f"The answer is {_JSON}.")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most_bytes:
            raise HTTPException(413, "The body is larger than this node takes.", {"Connection": "close"})
        try:
            return boundary_of(request.headers.get("content-type", ""))
        except Malformed as malformed:
            raise HTTPException(415 if "Only" in str(malformed) else 400, str(malformed)) from None

    async def _read(self, request: Request, related: Related) -> str:
        """Feed the body to the parser; why it ended early, empty where it came whole."""
        seen, waiting = 0, bytearray()
        pieces = request.stream()
        try:
            while True:
                async with asyncio.timeout(self._node.limits.idle_seconds):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                seen += len(piece)
                if seen > self._most_bytes:
                    return "The body is larger than this node takes."
                waiting += piece
                if len(waiting) >= _PIECE:
                    await run_in_threadpool(related.feed, bytes(waiting))
                    waiting.clear()
            await run_in_threadpool(related.feed, bytes(waiting))
            related.close()
        except Malformed as malformed:
            return str(malformed)
        except (TimeoutError, ClientDisconnect):
            return "The body breaks off."
        return ""


def _takes_json(accept: str) -> bool:
    kinds = [one.partition(";")[0].strip().lower() for one in accept.split(",")]
    return any(kind in ("*/*", "application/*", _JSON, "application/json") for kind in kinds)


def _answer(upload: Upload, wrong: str) -> Response:
    """PS3.18 10.5.3: 200 all are kept, 202 some, 409 none; 503: no room for any; 400: the body is not sound."""
    if not upload.kept and not upload.failed:
        raise HTTPException(400, wrong or "The body holds no instance.", {"Connection": "close"})
    full = upload.failed and all(one.refusal.status == OUT_OF_ROOM for one in upload.failed)
    if not upload.failed and not wrong:
        status = 200
    elif upload.kept:
        status = 202
    else:
        status = 503 if full else 400 if wrong else 409
    headers = {"Connection": "close"} if wrong else {}
    if status == 503:
        headers["Retry-After"] = "60"
    content = json.dumps(_told(upload, wrong).to_json_dict())
    return Response(content, status, {**headers, "Warning": f'299 medopt "{wrong}"'} if wrong else headers, _JSON)


def _told(upload: Upload, wrong: str) -> Dataset:
    """The Store Instances Response Module (PS3.18 I.2); of a part without UIDs only the reason can be told."""
    found = Dataset()
    if upload.kept:
        found.ReferencedSOPSequence = [_item(one.sop_class, one.sop_uid) for one in upload.kept]
        for item in found.ReferencedSOPSequence:
            item.RetrieveURL = ""
    if named := [one for one in upload.failed if one.sop_uid]:
        found.FailedSOPSequence = [*_failures(named)]
    others = [*_failures(one for one in upload.failed if not one.sop_uid)]
    if wrong:
        broken = Dataset()
        broken.FailureReason = NOT_UNDERSTOOD
        others.append(broken)
    if others:
        found.OtherFailuresSequence = others
    return found


def _failures(failed: Iterable[Failed]) -> Iterable[Dataset]:
    for one in failed:
        item = _item(one.sop_class, one.sop_uid) if one.sop_uid else Dataset()
        item.FailureReason = one.refusal.status
        yield item


def _item(sop_class: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item

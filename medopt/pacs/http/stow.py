"""STOW-RS (PS3.18 10.5): POST multipart/related to /dicom-web/studies or /dicom-web/studies/{uid}.

The response is 200 only when each instance is safe on disk and in the ledger, as for C-STORE's 0x0000.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable

from pydicom import Dataset
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from medopt.pacs.http.upload import FailedInstance, UnsupportedMediaType, Upload, dicom_boundary
from medopt.pacs.intake import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, Intake
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import Spool
from medopt.serving.server.auth import check_encoding
from medopt.serving.server.limits import Refused
from medopt.serving.server.multipart import MultipartError, MultipartParser

_MAX_REQUESTS = 16
_JSON = "application/dicom+json"
_CHUNK = 1 << 20
_TOO_LARGE = "The body is larger than this node accepts."


class StowService:
    """Handles requests; a few at once, the others get 503 with Retry-After."""

    def __init__(self, settings: NodeSettings, spool: Spool, intake: Intake, rejected: Callable[[str], None]) -> None:
        self._rejected = rejected
        assert settings.web is not None
        self._limits, self._spool, self._intake = settings.limits, spool, intake
        self._max_body_bytes = settings.web.body_bytes
        self._requests = 0

    async def store(self, request: Request) -> Response:
        """Handle one request."""
        boundary = self._checked_boundary(request)
        study_uid = request.path_params.get("study", "")
        if self._requests >= _MAX_REQUESTS:
            raise HTTPException(503, "Too many requests at once; try again.", {"Retry-After": "5"})
        upload = Upload(self._intake, self._spool, self._limits.instance_bytes, study_uid)
        self._requests += 1
        try:
            body_error = await self._read(request, MultipartParser(boundary, upload))
        finally:
            self._requests -= 1
            await run_in_threadpool(upload.close)
        response = _response(upload, body_error)
        if body_error:
            self._rejected(f"the body of a STOW request: {body_error}")
        return response

    def _checked_boundary(self, request: Request) -> bytes:
        """The boundary of the body; raises HTTPException if a header does not fit."""
        try:
            check_encoding(request.headers)
        except Refused as refused:
            raise HTTPException(415, refused.text) from None
        if not _accepts_json(request.headers.get("accept", "*/*")):
            raise HTTPException(406, f"The response is {_JSON}.")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body_bytes:
            raise HTTPException(413, _TOO_LARGE, {"Connection": "close"})
        try:
            return dicom_boundary(request.headers.get("content-type", ""))
        except MultipartError as error:
            raise HTTPException(415 if isinstance(error, UnsupportedMediaType) else 400, str(error)) from None

    async def _read(self, request: Request, parser: MultipartParser) -> str:
        """Feed the body to the parser; why it ended early, '' if it is complete."""
        received, buffer = 0, bytearray()
        chunks = request.stream()
        try:
            while True:
                async with asyncio.timeout(self._limits.idle_seconds):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                received += len(chunk)
                if received > self._max_body_bytes:
                    return _TOO_LARGE
                buffer += chunk
                if len(buffer) >= _CHUNK:
                    await run_in_threadpool(parser.feed, bytes(buffer))
                    buffer.clear()
            await run_in_threadpool(parser.feed, bytes(buffer))
            parser.close()
        except MultipartError as error:
            return str(error)
        except (TimeoutError, ClientDisconnect):
            return "The body breaks off."
        return ""


def _accepts_json(accept: str) -> bool:
    media_types = [media_range.partition(";")[0].strip().lower() for media_range in accept.split(",")]
    return any(name in ("*/*", "application/*", _JSON, "application/json") for name in media_types)


def _response(upload: Upload, body_error: str) -> Response:
    """The response (PS3.18 10.5.3).

    200: all instances are stored, 202: some, 409: none; 503: no space for any; 400: the body is malformed.
    """
    if not upload.stored and not upload.failed:
        raise HTTPException(400, body_error or "The body holds no instance.", {"Connection": "close"})
    no_space = upload.failed and all(failed.refusal.status == OUT_OF_RESOURCES for failed in upload.failed)
    if not upload.failed and not body_error:
        status = 200
    elif upload.stored:
        status = 202
    else:
        status = 503 if no_space else 400 if body_error else 409
    headers = {"Connection": "close", "Warning": f'299 medopt "{body_error}"'} if body_error else {}
    if status == 503:
        headers["Retry-After"] = "60"
    return Response(json.dumps(_response_module(upload, body_error).to_json_dict()), status, headers, _JSON)


def _response_module(upload: Upload, body_error: str) -> Dataset:
    """The Store Instances Response Module (PS3.18 I.2); for a part without UIDs it has only the reason."""
    module = Dataset()
    if upload.stored:
        module.ReferencedSOPSequence = [_item(stored.sop_class, stored.sop_uid) for stored in upload.stored]
        for item in module.ReferencedSOPSequence:
            item.RetrieveURL = ""
    if identified := [failed for failed in upload.failed if failed.sop_uid]:
        module.FailedSOPSequence = [*_failure_items(identified)]
    others = [*_failure_items(failed for failed in upload.failed if not failed.sop_uid)]
    if body_error:
        malformed = Dataset()
        malformed.FailureReason = CANNOT_UNDERSTAND
        others.append(malformed)
    if others:
        module.OtherFailuresSequence = others
    return module


def _failure_items(failures: Iterable[FailedInstance]) -> Iterable[Dataset]:
    for failed in failures:
        item = _item(failed.sop_class, failed.sop_uid) if failed.sop_uid else Dataset()
        item.FailureReason = failed.refusal.status
        yield item


def _item(sop_class: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item

"""C-STORE and C-ECHO: an instance is acknowledged when it is safe on disk and in the ledger, and not before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel as Push  # type: ignore[attr-defined]
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medopt.pacs.association import quiet_network, server_context
from medopt.pacs.bounded_server import BoundedServer, Bounds
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.intake import STORED, Intake, Refusal, content_digest, described
from medopt.pacs.settings import Node
from medopt.pacs.spool import Spool

log = logging.getLogger("medopt.pacs")

_PDU_BYTES = 1024 * 1024
"""What a sender may put into one PDU: pynetdicom's 16 kB make 250 rounds of an image of 2 megapixels."""
# A data set that is deflated as a whole could become a thousand times as large while its header is read.
_SYNTAXES = [one for one in ALL_TRANSFER_SYNTAXES if not UID(one).is_deflated and "Deflate" not in UID(one).name]


class Receiver:
    """The listening side of a node, by DIMSE. `told(event, ...)` is for the audit."""

    def __init__(
        self,
        node: Node,
        spool: Spool,
        intake: Intake,
        reports: CommitmentReceiver,
        told: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._node, self._spool, self._told = node, spool, told
        self._intake, self._reports = intake, reports
        self._server: Any = None

    def start(self) -> int:
        """Listen; returns the port. Raises OSError where that is taken."""
        quiet_network()
        limits = self._node.limits
        ae = AE(self._node.aet)
        ae.require_called_aet = True
        ae.maximum_associations = limits.associations
        ae.maximum_pdu_size = _PDU_BYTES
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 5, limits.idle_seconds, limits.idle_seconds
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax or "", _SYNTAXES)
        ae.add_supported_context(Verification)
        ae.add_supported_context(Push, scu_role=True, scp_role=True)  # the destination is the provider of this service
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._asked),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_N_EVENT_REPORT, self._reported),
        ]
        self._server = ae.make_server(
            (self._node.host, self._node.port),
            ae_title=self._node.aet,
            ssl_context=server_context(self._node.tls),
            evt_handlers=handlers,
            server_class=BoundedServer,
            bounds=Bounds(limits.instance_bytes, limits.memory_bytes, 2 * limits.associations),
        )
        ae._servers.append(self._server)  # its shutdown takes it out again
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.1,), name="pacs-listen", daemon=True)
        self._thread.start()
        return int(self._server.server_address[1])

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._server is not None and self._thread.is_alive()

    def stop(self) -> None:
        """No new associations; those open are aborted. What they had sent was acknowledged only if it is safe."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            for association in server.active_associations:
                association.abort()

    def _asked(self, event: evt.Event) -> None:
        """Turn away whom the node does not know (PS3.8 9.3.4: permanent, by the service user, calling title)."""
        association: Association = event.assoc
        asked: Any = association.requestor.primitive
        title, address = asked.calling_ae_title.strip(), str(association.requestor.address)
        known = [peer for peer in self._node.accept if peer.aet == title]
        if any(peer.comes_from(address) for peer in known):
            return
        why = "from an address that is not its own" if known else "an AE title that is not in `accept`"
        log.warning("association rejected: %s", why)
        self._told("rejected", reason=why)
        association.acse.send_reject(0x01, 0x01, 0x03)
        association.kill()

    def _echo(self, event: evt.Event) -> int:
        wire: Any = event.assoc.dul.socket
        wire.begin_message()
        return STORED

    def _store(self, event: evt.Event) -> Dataset | int:
        wire: Any = event.assoc.dul.socket
        try:
            return self._kept(event)
        except Refusal as refusal:
            self._intake.refused(refusal)
            answer = Dataset()
            answer.Status, answer.ErrorComment = refusal.status, refusal.reason[:64]
            return answer
        finally:
            wire.begin_message()

    def _reported(self, event: evt.Event) -> tuple[int, None]:
        """A destination says what it keeps."""
        event.assoc.dul.socket.begin_message()  # type: ignore[union-attr]
        title = event.assoc.requestor.primitive.calling_ae_title.strip()  # type: ignore[union-attr]
        return self._reports.take(title, event.event_information), None

    def _kept(self, event: evt.Event) -> int:
        content = event.encoded_dataset()
        request: Any = event.request
        syntax = str(event.context.transfer_syntax)
        with request.DataSet.getbuffer() as body:  # without the file header, which is the library's
            digest = content_digest(syntax, [body])
        names = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        one = described(BytesIO(content), names, syntax, digest, len(content))
        self._intake.keep(one, lambda place: self._spool.write(place, [content]), event.assoc.is_alive)
        return STORED

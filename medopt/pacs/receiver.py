"""C-STORE and C-ECHO (PS3.7 9.1): an instance is acknowledged when it is safe on disk and in the ledger."""

from __future__ import annotations

import threading
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.sop_class import StorageCommitmentPushModel as Push  # type: ignore[attr-defined]
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.association import quiet_network, server_context
from medopt.pacs.audit import AuditTrail, Rejections, no_audit
from medopt.pacs.bounded_server import BoundedServer, Bounds
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.intake import SUCCESS, Intake, Refusal, content_digest, parse_instance
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import Spool

_PDU_BYTES = 1024 * 1024
"""The largest PDU offered to senders: pynetdicom's 16 kB need 250 rounds for an image of 2 megapixels."""
# A data set that is deflated as a whole could become a thousand times as large while its header is read.
_TRANSFER_SYNTAXES = [
    uid for uid in ALL_TRANSFER_SYNTAXES if not UID(uid).is_deflated and "Deflate" not in UID(uid).name
]


def _prefer_first_supported(association: Any) -> None:
    """Of each context leave the transfer syntax that the sender names first and this node supports for its class.

    Pynetdicom would take the first of its own list.
    """
    known = {context.abstract_syntax: context.transfer_syntax for context in association.acceptor.supported_contexts}
    for context in association.requestor.primitive.presentation_context_definition_list:
        supported = [uid for uid in context.transfer_syntax if uid in known.get(context.abstract_syntax, ())]
        if supported:
            context.transfer_syntax = supported[:1]


class Receiver:
    """The node's DICOM port."""

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        intake: Intake,
        commitments: CommitmentReceiver,
        audit: AuditTrail = no_audit,
    ) -> None:
        self._settings, self._spool, self._audit = settings, spool, audit
        self._intake, self._commitments = intake, commitments
        self._rejections = Rejections(audit)
        self._server: Any = None

    def start(self) -> int:
        """Listen; returns the port. Raises OSError if it is taken."""
        quiet_network()
        limits = self._settings.limits
        ae = AE(self._settings.aet)
        ae.maximum_associations = limits.associations
        ae.maximum_pdu_size = _PDU_BYTES
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 5, limits.idle_seconds, limits.idle_seconds
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax or "", _TRANSFER_SYNTAXES)
        ae.add_supported_context(Verification)
        ae.add_supported_context(Push, scu_role=True, scp_role=True)  # the destination is the provider of this service
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_association),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_PDU_SENT, self._on_pdu_sent),
            (evt.EVT_C_STORE, self._on_c_store),
            (evt.EVT_C_ECHO, self._on_c_echo),
            (evt.EVT_N_EVENT_REPORT, self._on_event_report),
        ]
        self._server = ae.make_server(
            (self._settings.host, self._settings.port),
            ae_title=self._settings.aet,
            ssl_context=server_context(self._settings.tls),
            evt_handlers=handlers,
            server_class=BoundedServer,
            bounds=Bounds(limits.instance_bytes, limits.memory_bytes, 2 * limits.associations),
            turned_away=self._rejections.record,
        )
        ae._servers.append(self._server)  # its shutdown removes it from there
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.1,), name="pacs-listen", daemon=True)
        self._thread.start()
        return int(self._server.server_address[1])

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._server is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Accept no new associations and abort the open ones. Only instances that are safe were acknowledged."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            for association in server.active_associations:
                association.abort()

    def _on_association(self, event: evt.Event) -> None:
        """Reject an unknown sender or a wrong called title (PS3.8 9.3.4: permanent, by the service user)."""
        association: Association = event.assoc
        request: Any = association.requestor.primitive
        title, address = request.calling_ae_title.strip(), str(association.requestor.address)
        senders = [sender for sender in self._settings.accept if sender.aet == title]
        if request.called_ae_title.strip() != self._settings.aet:
            reason, diagnostic = "it calls another AE title than this node's", 0x07
        elif not any(sender.has_address(address) for sender in senders):
            reason = "from an address that is not its own" if senders else "an AE title that is not in `accept`"
            diagnostic = 0x03
        else:
            _prefer_first_supported(association)
            return
        self._rejections.record(reason)
        association.acse.send_reject(0x01, 0x01, diagnostic)
        association.kill()

    def _on_rejected(self, event: evt.Event) -> None:
        """Pynetdicom itself rejects for one reason alone (PS3.8 9.3.4: transient, local limit exceeded)."""
        self._rejections.record("too many associations at once (limits.associations)")

    def _on_pdu_sent(self, event: evt.Event) -> None:
        """An association that pynetdicom aborts (PS3.8 9.3.8) leaves a line, too; not when the node itself ends."""
        if isinstance(event.pdu, A_ABORT_RQ) and self._server is not None:
            socket: Any = event.assoc.dul.socket
            if event.pdu.source:
                socket.turned_away("a PDU is malformed or comes out of turn")
            elif socket.serving:  # in a context that was not accepted, for one
                socket.turned_away("a request could not be served")
            else:
                socket.turned_away("it was silent for too long")

    def _on_c_echo(self, event: evt.Event) -> int:
        socket: Any = event.assoc.dul.socket
        socket.begin_message()
        return SUCCESS

    def _on_c_store(self, event: evt.Event) -> Dataset | int:
        socket: Any = event.assoc.dul.socket
        try:
            self._store(event)
            return SUCCESS
        except Refusal as refusal:
            self._intake.record_refusal(refusal)
            response = Dataset()
            response.Status, response.ErrorComment = refusal.status, refusal.reason[:64]
            return response
        finally:
            socket.begin_message()

    def _on_event_report(self, event: evt.Event) -> tuple[int, None]:
        """A destination reports which results it keeps (N-EVENT-REPORT, PS3.4 J.3.3)."""
        event.assoc.dul.socket.begin_message()  # type: ignore[union-attr]
        title = event.assoc.requestor.primitive.calling_ae_title.strip()  # type: ignore[union-attr]
        return self._commitments.take(title, event.event_information), None

    def _store(self, event: evt.Event) -> None:
        content = event.encoded_dataset()
        request: Any = event.request
        transfer_syntax = str(event.context.transfer_syntax)
        with request.DataSet.getbuffer() as body:  # without the file header, which pynetdicom writes
            digest = content_digest(transfer_syntax, [body])
        sop_uid, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        instance = parse_instance(BytesIO(content), sop_uid, sop_class, transfer_syntax, digest, len(content))
        self._intake.store(
            instance,
            lambda name: self._spool.write(name, [content]),
            event.assoc.is_alive,
            lambda: parse_dicom(BytesIO(content), stop_before_pixels=True),
        )

"""Associations that the node requests, and the TLS contexts of both sides."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from medopt.core.errors import ConfigError
from medopt.imaging.parse_dicom import quiet_pydicom
from medopt.pacs.peers import DimsePeer
from medopt.pacs.settings import NodeSettings, TlsSettings


def quiet_network() -> None:
    """Silence pydicom, pynetdicom and highdicom in this process: their log messages may quote a header."""
    quiet_pydicom()
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def server_context(tls: TlsSettings | None) -> ssl.SSLContext | None:
    """For the listening side; raises ConfigError where a file cannot be used."""
    return None if tls is None else _loaded(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tls)


def client_context(tls: TlsSettings) -> ssl.SSLContext:
    """For an association to a peer, whose host name is checked. Raises ConfigError where a file cannot be used."""
    return _loaded(ssl.create_default_context(ssl.Purpose.SERVER_AUTH), tls)


def _loaded(context: ssl.SSLContext, tls: TlsSettings) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.authority)
    except OSError as error:  # SSLError is one
        raise ConfigError(
            f"The section tls cannot be used: {error.strerror or error.reason}. Check that certificate, key and "  # type: ignore[attr-defined]
            "authority are PEM files that belong together, and that the node may read them."
        ) from None
    return context


def associate(
    settings: NodeSettings, peer: DimsePeer, sop_classes: Sequence[str], transfer_syntaxes: Sequence[str], *,
    silence_seconds: float = 0, handlers: Sequence[evt.EventHandlerType] = (),
) -> Association:  # fmt: skip
    """Request an association (PS3.8 7.1); it may come back not established.

    The peer may send nothing for `sending.timeout_seconds`, or for `silence_seconds` if that is longer. `handlers`
    answer what it requests on this association.
    """
    quiet_network()
    ae = AE(settings.aet)
    ae.acse_timeout = ae.connection_timeout = settings.sending.timeout_seconds
    ae.dimse_timeout = ae.network_timeout = max(silence_seconds, settings.sending.timeout_seconds)
    tls = (client_context(settings.tls), peer.host) if peer.tls and settings.tls is not None else None
    contexts = [build_context(uid, list(transfer_syntaxes)) for uid in sop_classes]
    return ae.associate(
        peer.host, peer.port, contexts=contexts, ae_title=peer.aet, tls_args=tls, evt_handlers=list(handlers)
    )

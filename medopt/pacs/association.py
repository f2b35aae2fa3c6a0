"""An association that the node asks for."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from medopt.core.errors import ConfigError
from medopt.imaging.parse_dicom import quiet_pydicom
from medopt.pacs.destinations import Destination
from medopt.pacs.settings import DicomTls, Node


def quiet_network() -> None:
    """Silence pydicom, pynetdicom and highdicom in this process: what they log may quote a header."""
    quiet_pydicom()
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def server_context(tls: DicomTls | None) -> ssl.SSLContext | None:
    """For the listening side; raises ConfigError where a file cannot be used."""
    return None if tls is None else _loaded(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tls)


def client_context(tls: DicomTls) -> ssl.SSLContext:
    """For an association to a destination; its name is checked. Raises ConfigError where a file cannot be used."""
    return _loaded(ssl.create_default_context(ssl.Purpose.SERVER_AUTH), tls)


def _loaded(context: ssl.SSLContext, tls: DicomTls) -> ssl.SSLContext:
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
    node: Node, place: Destination, classes: Sequence[str], syntaxes: Sequence[str], *, silence_seconds: float = 0
) -> Association:
    """An association with a place, established or not; `silence_seconds`: how long it may say nothing, at the least."""
    quiet_network()
    ae = AE(node.aet)
    ae.acse_timeout = ae.connection_timeout = node.sending.timeout_seconds
    ae.dimse_timeout = ae.network_timeout = max(silence_seconds, node.sending.timeout_seconds)
    more: dict[str, Any] = {}
    if place.tls and node.tls is not None:
        more["tls_args"] = (client_context(node.tls), place.host)
    contexts = [build_context(uid, list(syntaxes)) for uid in classes]
    return ae.associate(place.host, place.port, contexts=contexts, ae_title=place.aet, **more)

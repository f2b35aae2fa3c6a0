"""TLS with certificates of both sides (PS3.15 B.12)."""

from __future__ import annotations

import ssl

from medopt.core.errors import ConfigError
from medopt.pacs.settings import Tls


def server_context(tls: Tls | None) -> ssl.SSLContext | None:
    """For the listening side; raises ConfigError where a file cannot be used."""
    return None if tls is None else _loaded(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tls)


def client_context(tls: Tls) -> ssl.SSLContext:
    """For an association to a destination; its name is checked. Raises ConfigError where a file cannot be used."""
    return _loaded(ssl.create_default_context(ssl.Purpose.SERVER_AUTH), tls)


def _loaded(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
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

"""An association that the node asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from medopt.pacs.places import Destination
from medopt.pacs.settings import Node
from medopt.pacs.tls import client_context


def associate(
    node: Node, place: Destination, classes: Sequence[str], syntaxes: Sequence[str], *, silence_seconds: float = 0
) -> Association:
    """An association with a place, established or not; `silence_seconds`: how long it may say nothing, at the least."""
    ae = AE(node.aet)
    ae.acse_timeout = ae.connection_timeout = node.sending.timeout_seconds
    ae.dimse_timeout = ae.network_timeout = max(silence_seconds, node.sending.timeout_seconds)
    more: dict[str, Any] = {}
    if place.tls and node.tls is not None:
        more["tls_args"] = (client_context(node.tls), place.host)
    contexts = [build_context(uid, list(syntaxes)) for uid in classes]
    return ae.associate(place.host, place.port, contexts=contexts, ae_title=place.aet, **more)

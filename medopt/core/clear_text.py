"""Credentials that would cross a network in clear: an address by plain HTTP that is not this machine itself."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_in_clear(url: str) -> bool:
    """Whether what is sent to this address could be read on the way.

    >>> [is_in_clear(url) for url in ("http://pacs.clinic/x", "https://pacs.clinic/x", "http://127.0.0.1:5000")]
    [True, False, False]
    """
    parts = urlsplit(url)
    return parts.scheme.lower() == "http" and not is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: localhost (RFC 6761), 127.0.0.0/8 or ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback

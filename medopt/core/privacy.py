"""Stand-ins for identifiers: what may be logged, tracked and released in place of a patient's number."""

from __future__ import annotations

import hmac
import os


def pseudonym(identifier: str) -> str:
    """A stable stand-in for a patient's or an image's identifier: 16 hex digits of a keyed hash.

    The key is MEDOPT_PSEUDONYM_KEY. Set it at a site whose patient numbers are short enough to be tried one by one.
    """
    key = os.environb.get(b"MEDOPT_PSEUDONYM_KEY", b"medopt")
    return hmac.digest(key, identifier.encode(), "sha256").hex()[:16]

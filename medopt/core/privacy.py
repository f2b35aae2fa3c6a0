"""Pseudonyms: what may be logged, tracked and released in place of the identifier of a patient."""

from __future__ import annotations

import hmac
import os


def pseudonym(identifier: str) -> str:
    """A stable pseudonym of the identifier of a patient or an image: 16 hex digits of a keyed hash (HMAC-SHA-256).

    The key is the environment variable MEDOPT_PSEUDONYM_KEY. Set it at a site whose patient numbers are short enough to
    be guessed by trying all of them.

    >>> pseudonym("P1") == pseudonym("P1"), len(pseudonym("P1"))
    (True, 16)
    """
    key = os.environb.get(b"MEDOPT_PSEUDONYM_KEY", b"medopt")
    return hmac.digest(key, identifier.encode(), "sha256").hex()[:16]

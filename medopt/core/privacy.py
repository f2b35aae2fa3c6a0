"""What may be logged, tracked, shown and released: pseudonyms for patients, and texts without credentials."""

from __future__ import annotations

import hmac
import os
import re

HIDDEN = "(hidden)"
_USERINFO = re.compile(r"(?<=://)[^\s'\"<>]*@")  # to the last @: a password may hold one, or a slash
_SCHEME = re.compile(r"\b(Bearer|Basic|Token|ApiKey)(\s+)(?=\S*[\d=+/])[\w.~+/=-]{8,}", re.IGNORECASE)
_NAMED = re.compile(
    r"([\w.-]*(?:token|secret|passw(?:or)?d|pwd|api[_-]?key|signature|credential)[\w.-]*=)[^\s&;,'\"]+", re.IGNORECASE
)


def pseudonym(identifier: str) -> str:
    """A stable pseudonym of the identifier of a patient or an image: 16 hex digits of a keyed hash (HMAC-SHA-256).

    The key is the environment variable MEDOPT_PSEUDONYM_KEY. Set it at a site whose patient numbers are short enough to
    be guessed by trying all of them.

    >>> pseudonym("P1") == pseudonym("P1"), len(pseudonym("P1"))
    (True, 16)
    """
    key = os.environb.get(b"MEDOPT_PSEUDONYM_KEY", b"medopt")
    return hmac.digest(key, identifier.encode(), "sha256").hex()[:16]


def without_credentials(text: str) -> str:
    """A text in which user and password of a URL, tokens, and values named as secrets are hidden.

    >>> without_credentials("no answer from https://ann:pw@pacs.example/dicom-web?token=abc")
    'no answer from https://(hidden)@pacs.example/dicom-web?token=(hidden)'
    """
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)

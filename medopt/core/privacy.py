"""What may be logged, tracked, shown and released: pseudonyms for patients, and texts without credentials."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable
from functools import cache

HIDDEN = "(hidden)"
UNKNOWN_PATIENT = frozenset(
    {"", "na", "n/a", "nan", "none", "null", "unknown", "anonymous", "anonymized", "anonymised", "?", "-"}
)
"""Identifiers that mean that the patient is unknown."""
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
    return pseudonyms([identifier])[0]


def pseudonyms(identifiers: Iterable[str]) -> list[str]:
    """The `pseudonym` of each of many identifiers, in half the time: the key is looked up once."""
    keyed, hidden = _keyed(os.environb.get(b"MEDOPT_PSEUDONYM_KEY", b"medopt")), []
    for identifier in identifiers:
        own = keyed.copy()
        own.update(identifier.encode())
        hidden.append(own.hexdigest()[:16])
    return hidden


@cache
def _keyed(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod="sha256")


# Words that stand in names of folders and are not names of people.
_USUAL = """
train training trn val valid validation dev test testing set sets data dataset image images img imgs sample samples
scan scans case cases file files folder part patient patients subject subjects study studies series session visit site
center centre hospital class classes label labels normal abnormal healthy benign malignant lesion lesions tumor tumour
cancer covid pneumonia control controls positive negative finding no non not without with mask masks left right axial
coronal sagittal export dicom nifti unknown other others original raw processed the of and
"""
_USUAL_WORDS = frozenset(_USUAL.split())


def public_path(path: str, *public_names: str) -> str:
    """A path in which each folder that may be named after a person is `*`; `public_names` may be shown.

    >>> public_path("MILLER_ANNA/benign/b (1).png"), public_path("scans/site_a/1.png")
    ('*/benign/b (1).png', 'scans/site_a/1.png')
    """
    *folders, name = path.split("/")
    return "/".join(
        [*("*" if folder not in public_names and may_be_name(folder) else folder for folder in folders), name]
    )


def may_be_name(folder: str) -> bool:
    """Whether a folder may be called after a person: two words that are not usual ones, or one with a capital.

    >>> [may_be_name(folder) for folder in ("anna miller", "Miller", "DOE^JOHN", "training_set", "P0042", "ill")]
    [True, True, True, False, False, False]
    """
    words = [word for word in re.findall(r"[^\W\d_]+", folder) if len(word) > 1 and word.lower() not in _USUAL_WORDS]
    return (
        bool(re.search(r"[\^,]", folder))
        or len(words) > 1
        or any(word[0].isupper() and len(word) > 3 for word in words)
    )


def without_credentials(text: str) -> str:
    """A text in which user and password of a URL, tokens, and values named as secrets are hidden.

    >>> without_credentials("no answer from https://ann:pw@pacs.example/dicom-web?token=abc")
    'no answer from https://(hidden)@pacs.example/dicom-web?token=(hidden)'
    """
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)

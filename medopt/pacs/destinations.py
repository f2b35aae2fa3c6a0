"""Another system as `node.yaml` names it: by AE title, host and port, or by the address of its DICOMweb service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from medopt.config import Section
from medopt.config.study_file import explain
from medopt.core.errors import ConfigError


def _title(text: str) -> str:
    """An application entity title (PS3.5 6.2, VR AE): 1 to 16 printable ASCII characters, no backslash."""
    if not 1 <= len(text) <= 16 or text != text.strip() or "\\" in text or not (text.isascii() and text.isprintable()):
        raise ValueError(
            "an AE title has 1 to 16 printable ASCII characters, no backslash, and no space before or after"
        )
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        raise ValueError("it takes the address of a DICOMweb service, as in https://pacs.example/dicom-web")
    if parts.username is not None:
        raise ValueError("no user and password in the address: name a file with the header Authorization in headers")
    return text.rstrip("/")


Title = Annotated[str, AfterValidator(_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Url = Annotated[str, AfterValidator(_url)]


class Destination(Section):
    """Where results are sent to by C-STORE."""

    aet: Title
    host: str = Field(min_length=1)
    port: Port
    tls: bool = False
    """True: as the node's own `tls` section says."""
    commit: bool = False
    """True: a result counts as sent only once the destination has said that it keeps it (storage commitment). It says
    so by an association to the node, so it must stand in `accept`, too."""

    @property
    def name(self) -> str:
        """What the ledger knows it by."""
        return f"{self.aet}@{self.host}:{self.port}"


class Secret(Section):
    """Where a header's value stands, so that it is not in this file."""

    file: Path | None = None
    """A file that holds the value, on its first line; a relative path starts at this file's folder."""
    variable: str | None = None
    """The name of an environment variable."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.file is None) == (self.variable is None):
            raise ValueError("name either file or variable")
        return self

    def read(self) -> str:
        """The value as it is now; raises ConfigError, which does not quote it."""
        if self.file is None:
            found = os.environ.get(str(self.variable), "")
        else:
            try:
                found = self.file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"The file {self.file} for a header cannot be read ({type(error).__name__})."
                ) from None
        value = found.strip()
        if not value or not value.isprintable():
            raise ConfigError(f"There is no value for a header in {self.file or self.variable}.")
        return value


class WebDestination(Section):
    """Where results are sent to by STOW-RS."""

    url: Url
    """The DICOMweb service, as in https://pacs.example/dicom-web."""
    headers: dict[str, Secret] = Field(default_factory=dict)
    """What to send with each request, as in {Authorization: {file: pacs.secret}}, where the file holds `Bearer ...` or
    `Basic ...`."""
    authority: Path | None = None
    """The certificates (PEM) of those who may vouch for the service; else the system's."""

    @property
    def name(self) -> str:
        """What the ledger knows it by."""
        return self.url


_DICOM, _WEB = "by DICOM", "by DICOMweb"


def _kind(raw: Any) -> str:
    return _WEB if isinstance(raw, WebDestination) or (isinstance(raw, Mapping) and "url" in raw) else _DICOM


Place = Annotated[
    Annotated[Destination, Tag(_DICOM)] | Annotated[WebDestination, Tag(_WEB)],
    Discriminator(_kind),
]
"""A destination: with `url` it is a DICOMweb service."""


def explain_place(item: Any, root: type[Section]) -> str:
    """As `explain`, for files in which places stand: the nearest known key is that of their kind.

    What may hold a credential (an address, a header's value) is not quoted.
    """
    if {"url", "headers"} & set(item["loc"]):
        item = {**item, "input": {}}
    for tag, kind in ((_DICOM, Destination), (_WEB, WebDestination)):
        if tag in item["loc"]:
            at = item["loc"].index(tag)
            before = ".".join(map(str, item["loc"][:at]))
            return f"{before}: {explain({**item, 'loc': item['loc'][at + 1 :]}, kind)}"
    return explain(item, root)


def anchored(place: Destination | WebDestination, base: Path) -> Destination | WebDestination:
    """A place whose relative paths start at a folder."""
    if isinstance(place, Destination):
        return place
    headers = {
        name: one if one.file is None else one.model_copy(update={"file": base / one.file})
        for name, one in place.headers.items()
    }
    authority = None if place.authority is None else base / place.authority
    return place.model_copy(update={"headers": headers, "authority": authority})

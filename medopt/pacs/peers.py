"""Another system as `node.yaml` names it: by AE title, host and port, or by the URL of its DICOMweb service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from medopt.config import Section
from medopt.config.study_file import explain
from medopt.core.clear_text import is_in_clear
from medopt.core.errors import ConfigError, MedoptError


class PeerError(MedoptError):
    """Another system did not answer as it should; the text names no patient."""


class PeerGone(PeerError):
    """The other system is not reached any longer: nothing else can be asked of it now."""


def _ae_title(text: str) -> str:
    """An application entity title (PS3.5 6.2, VR AE): 1 to 16 printable ASCII characters, no backslash."""
    if not 1 <= len(text) <= 16 or text != text.strip() or "\\" in text or not (text.isascii() and text.isprintable()):
        raise ValueError(
            "an AE title has 1 to 16 printable ASCII characters, no backslash, and no space before or after"
        )
    return text


def _service_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ValueError("it takes the URL of a DICOMweb service, as in https://pacs.example/dicom-web")
    if parts.username is not None:
        raise ValueError("the URL may hold no user and password: name a file with the header Authorization in headers")
    return text.rstrip("/")


def _host(text: str) -> str:
    if not text or any(sign in text for sign in "/@?# \t"):
        raise ValueError("host is a name or an address alone, as in pacs.example; a DICOMweb service has a url instead")
    return text


AETitle = Annotated[str, AfterValidator(_ae_title)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
ServiceUrl = Annotated[str, AfterValidator(_service_url)]


class DimsePeer(Section):
    """A system that speaks DICOM over TCP: results go there by C-STORE."""

    aet: AETitle
    host: Host
    port: Port
    tls: bool = False
    """True: connect with TLS, as the node's own `tls` section says."""
    commit: bool = False
    """True: a result counts as sent only after the destination has reported that it keeps it (storage commitment). The
    report comes by an association to the node, so the destination must be in `accept`, too."""

    @property
    def name(self) -> str:
        """The name of this destination in the ledger."""
        return f"{self.aet}@{self.host}:{self.port}"


class HeaderSecret(Section):
    """Where the value of a header is kept, so that it is not in the node file."""

    file: Path | None = None
    """A file with the value on its first line; a relative path starts at the node file's folder."""
    variable: str | None = None
    """The name of an environment variable."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.file is None) == (self.variable is None):
            raise ValueError("name either file or variable")
        return self

    def in_folder(self, base: Path) -> HeaderSecret:
        """The same with a relative path that starts at a folder."""
        return self if self.file is None else self.model_copy(update={"file": base / self.file})

    def read(self) -> str:
        """The value as it is now; raises ConfigError, which does not quote it."""
        if self.file is None:
            text = os.environ.get(str(self.variable), "")
        else:
            try:
                text = self.file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"The file {self.file} for a header or password cannot be read ({type(error).__name__})."
                ) from None
        value = text.strip()
        if not value or not value.isprintable():
            raise ConfigError(f"There is no value for a header or password in {self.file or self.variable}.")
        return value


def require_encrypted(url: str, headers: Mapping[str, HeaderSecret]) -> None:
    """Raise ValueError where headers, which are secrets, would cross the network in clear."""
    if headers and is_in_clear(url):
        raise ValueError(
            "its headers would cross the network in clear: give an address with https://, or leave them out; with "
            "headers plain http:// is for this machine alone (127.0.0.1, localhost)"
        )


class WebPeer(Section):
    """A system that offers DICOMweb: results go there by STOW-RS."""

    url: ServiceUrl
    """The DICOMweb service, as in https://pacs.example/dicom-web."""
    headers: dict[str, HeaderSecret] = Field(default_factory=dict)
    """Headers to send with each request, as in {Authorization: {file: pacs.secret}}, where the file holds `Bearer ...`
    or `Basic ...`; to another machine by https:// only."""
    authority: Path | None = None
    """The certificates (PEM) of the authorities that may sign the service's certificate; by default the system's."""

    @model_validator(mode="after")
    def _headers_are_encrypted(self) -> Self:
        require_encrypted(self.url, self.headers)
        return self

    @property
    def name(self) -> str:
        """The name of this destination in the ledger."""
        return self.url


_DIMSE, _WEB = "by DICOM", "by DICOMweb"


def _protocol(raw: Any) -> str:
    return _WEB if isinstance(raw, WebPeer) or (isinstance(raw, Mapping) and "url" in raw) else _DIMSE


RemotePeer = Annotated[
    Annotated[DimsePeer, Tag(_DIMSE)] | Annotated[WebPeer, Tag(_WEB)],
    Discriminator(_protocol),
]
"""A destination or a source: with `url` it is a DICOMweb service."""


def explain_finding(finding: Any, root: type[Section]) -> str:
    """As `explain`, for files that name peers: the nearest known key is looked up among the keys of its protocol.

    A value that may hold a credential is not quoted: of a URL, header, host or password, or one that is no plain word.
    """
    if {"url", "headers", "host", "password"} & set(finding["loc"]) or not _is_plain(finding["input"]):
        finding = {**finding, "input": {}}
    finding = {**finding, "loc": tuple(part if _is_plain(part) else "(a name)" for part in finding["loc"])}
    for tag, section in ((_DIMSE, DimsePeer), (_WEB, WebPeer)):
        if tag in finding["loc"]:
            index = finding["loc"].index(tag)
            parents = ".".join(map(str, finding["loc"][:index]))
            return f"{parents}: {explain({**finding, 'loc': finding['loc'][index + 1 :]}, section)}"
    return explain(finding, root)


def _is_plain(value: Any) -> bool:
    """Whether a value can be quoted: a number, or a short text without the signs of a URL or a credential."""
    return (
        value in (None, [])
        or isinstance(value, int | float)
        or (isinstance(value, str) and len(value) <= 40 and not any(sign in value for sign in "@:=?&"))
    )


def with_absolute_paths(peer: DimsePeer | WebPeer, base: Path) -> DimsePeer | WebPeer:
    """A peer whose relative paths start at a folder."""
    if isinstance(peer, DimsePeer):
        return peer
    headers = {name: secret.in_folder(base) for name, secret in peer.headers.items()}
    authority = None if peer.authority is None else base / peer.authority
    return peer.model_copy(update={"headers": headers, "authority": authority})

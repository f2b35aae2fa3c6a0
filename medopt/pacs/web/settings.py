"""The section `web` of `node.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from medopt.config import Section
from medopt.config.section import MEGABYTE, Positive


class Web(Section):
    """A page with the node's state, `/health`, `/metrics`, and STOW-RS. Without this section there is none of it."""

    host: str = "127.0.0.1"
    """The address to listen on; one that other machines reach needs a key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8043
    key_file: Path | None = None
    """A file that holds a key of at least 16 characters, asked for by all but /health: as X-API-Key, Authorization:
    Bearer, or, for browsers, as the password of any user. Else the environment's MEDOPT_API_KEY, else none."""
    names: list[str] = Field(default_factory=list)
    """Names by which clients call this machine, beside its address; a request for another one is refused."""
    tls: bool = False
    """True: HTTPS with the certificate of the section `tls`."""
    stow: bool = False
    """True: instances are also taken by STOW-RS, at /dicom-web/studies."""
    body_mb: Positive = 4096
    """The largest request of STOW-RS; its instances are bounded by limits.instance_mb each."""

    @property
    def body_bytes(self) -> int:
        """`body_mb` in bytes."""
        return int(self.body_mb * MEGABYTE)

    @model_validator(mode="after")
    def _names_are_plain(self) -> Self:
        if wrong := [name for name in self.names if not name or any(sign in name for sign in ":/ ")]:
            raise ValueError(f"names takes host names without port, not {wrong[0]!r}")
        return self

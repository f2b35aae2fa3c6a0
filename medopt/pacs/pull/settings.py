"""The section `pull` of `node.yaml`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from medopt.config import Section
from medopt.config.section import Positive
from medopt.pacs.places import Place

Modality = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{1,16}$")]


class Pull(Section):
    """Asks a PACS which studies it has, and fetches what never came here."""

    source: Place
    """With aet, host and port it is asked by C-FIND and C-MOVE, and must know this node's AE title, address and port;
    and it must be in `accept`. With url it is asked by QIDO-RS and WADO-RS."""
    modalities: list[Modality] = Field(min_length=1)
    """Series of these are asked for, as in [CR, DX]."""
    days: Positive = 2
    """Studies are asked for whose date is no more days ago."""
    every_minutes: Positive | None = 60
    """How often a running node asks, for the first time when it starts; null: only `medopt pacs reconcile` does."""

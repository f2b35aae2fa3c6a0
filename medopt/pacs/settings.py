"""`node.yaml`: all that a PACS node may be told. An unknown key is refused with "did you mean"."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from medopt.config import Section, SeriesRules
from medopt.config.section import MEGABYTE, Positive
from medopt.config.study_file import read_keys
from medopt.core.errors import ConfigError
from medopt.pacs.destinations import Destination, Place, Port, Title, anchored, explain_place


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


def _network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        raise ValueError("it takes an IP address or a network, as in 10.1.2.3 or 10.1.2.0/24") from None
    return text


Network = Annotated[str, AfterValidator(_network)]


class Peer(Section):
    """Who may send: an AE title, and the addresses that it may come from."""

    aet: Title
    addresses: list[Network] = Field(min_length=1)
    """IP addresses or networks, as in [10.1.2.3, 10.1.4.0/24]."""

    def comes_from(self, address: str) -> bool:
        """Whether an IP address is one of this peer's."""
        found = ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None) or found
        return any(mapped in ip_network(one, strict=False) for one in self.addresses)


class NodeLimits(Section):
    """What no sender may exceed."""

    associations: int = Field(100, ge=1, le=1000)
    """Associations at the same time; one more is rejected as a passing shortage."""
    instance_mb: Positive = 1024
    """The largest instance. A connection that sends more is closed."""
    memory_mb: Positive = 4096
    """What unfinished instances of all senders may take together; a connection that brings more is closed, and its
    sender has to try again."""
    free_mb: float = Field(1024, ge=0)
    """Free space of the spool's disk below which every instance is refused (0xA700) until there is more again."""
    idle_seconds: Positive = 60
    """A connection that says nothing for so long is closed."""

    @property
    def instance_bytes(self) -> int:
        """`instance_mb` in bytes."""
        return int(self.instance_mb * MEGABYTE)

    @property
    def memory_bytes(self) -> int:
        """`memory_mb` in bytes."""
        return int(self.memory_mb * MEGABYTE)

    @property
    def free_bytes(self) -> int:
        """`free_mb` in bytes."""
        return int(self.free_mb * MEGABYTE)


class WorkerSettings(Section):
    """The process that decodes and predicts. It may be killed at any time without loss."""

    tries: int = Field(3, ge=1)
    """A study during which the process ended so many times is parked."""
    seconds: Positive = 600
    """The longest that one study may take."""
    memory_mb: Positive = 8192
    """The process is ended where it takes more memory (resident)."""


class Sending(Section):
    """How often a result is tried before it is parked; `medopt pacs retry` begins anew."""

    tries: int = Field(12, ge=1)
    first_seconds: Positive = 15
    """The wait after the first failure; it doubles with each one."""
    longest_seconds: Positive = 900
    """The longest wait between two attempts."""
    timeout_seconds: Positive = 30
    """How long a destination may take to answer."""
    commit_seconds: Positive = 900
    """How long a destination with commit: true may take to say that it keeps a result; then it is sent once more."""


class Results(Section):
    """What is sent back."""

    text: bool = True
    """Also a Basic Text SR, for viewers that read no measurement reports."""
    heat_maps: int = Field(8, ge=0, le=100)
    """Also Secondary Captures that show where the evidence lay, for findings that are present or undecided: of at most
    so many scans of a study, those of the highest probability. 0: none."""
    declined: bool = True
    """True: a scan that the release declines gets a report, too, that says Undetermined. False: nothing is sent."""
    series_number: int = Field(9001, ge=1, le=2**31 - 100)
    """Of the measurement reports; those in text have the next one, heat maps the one after."""


class Retention(Section):
    """How long the spool keeps a study after every destination confirmed its results; never shorter.

    What was parked stays until somebody decides. The ledger remembers every study: sent again it is acknowledged and
    gives no second result; a new image of it is refused.
    """

    days: float = Field(30, ge=0)
    """So long after the last change."""
    gigabytes: Positive | None = None
    """Above so much the oldest of them go earlier, until the spool holds less."""


class DicomTls(Section):
    """Encryption with a certificate of both sides: a sender without one of the authority's is turned away."""

    certificate: Path
    """The node's certificate with its chain (PEM)."""
    key: Path
    """Its private key (PEM)."""
    authority: Path
    """The certificates (PEM) of those who may vouch for the other side."""


class Node(Section):
    """One PACS node: who it is, who may send, what it runs, where results go."""

    aet: Title
    """The node's own AE title; an association that calls another one is rejected."""
    host: str = "0.0.0.0"
    port: Port = 11112
    release: Path
    """A release folder, whose relative path starts at this file's folder; or models:/NAME@champion, as MLflow's
    registry has it when the node starts (kept here for when it does not answer)."""
    model: Literal["int8", "float"] = "int8"
    spool: Path
    """The folder for what was received and for the ledger, on a local disk; it holds patients' data."""
    accept: list[Peer] = Field(min_length=1)
    destinations: list[Place] = Field(min_length=1)
    """Each with aet, host and port, for C-STORE, or with url, for STOW-RS."""
    quiet_seconds: Positive = 60
    """A study is complete when it was quiet for so long and no association that sent any of it is open."""
    late_images: Literal["new_result", "refuse"] = "new_result"
    """What becomes of an image of a study that was answered: a new result, which names the earlier one, or it is
    refused."""
    series: SeriesRules | None = None
    """Which series of a study is meant, instead of the release's own rules."""
    limits: NodeLimits = NodeLimits()
    work: WorkerSettings = WorkerSettings()
    sending: Sending = Sending()
    results: Results = Results()
    retention: Retention = Retention()
    tls: DicomTls | None = None
    web: Web | None = None
    pull: Pull | None = None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [one.name for one in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError(f"a destination stands twice in {names}")
        if self.tls is None and any(isinstance(one, Destination) and one.tls for one in self.destinations):
            raise ValueError("a destination with tls: true needs the node's section tls")
        known = {peer.aet for peer in self.accept}
        for one in self.destinations:
            if isinstance(one, Destination) and one.commit and one.aet not in known:
                raise ValueError(f"destination {one.aet} with commit: true reports to the node: name it in accept, too")
        if self.tls is None and self.web is not None and self.web.tls:
            raise ValueError("web with tls: true needs the node's section tls")
        return self


def load_node(path: Path) -> Node:
    """Read a node file; relative paths in it start at its folder.

    Raises ConfigError naming the file, the key and the nearest known key.
    """
    raw = read_keys(path, "node file", "aet, release, spool, accept and destinations")
    try:
        node = Node.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + " ".join(explain_place(item, Node) for item in error.errors()[:5])) from None
    base = path.resolve().parent
    registered = str(node.release).startswith("models:")
    changes: dict[str, object] = {"release": node.release if registered else base / node.release}
    changes["spool"] = base / node.spool
    changes["destinations"] = [anchored(one, base) for one in node.destinations]
    if node.pull is not None:
        changes["pull"] = node.pull.model_copy(update={"source": anchored(node.pull.source, base)})
    if node.tls is not None:
        places = {name: base / getattr(node.tls, name) for name in DicomTls.model_fields}
        changes["tls"] = node.tls.model_copy(update=places)
    if node.web is not None and node.web.key_file is not None:
        changes["web"] = node.web.model_copy(update={"key_file": base / node.web.key_file})
    return node.model_copy(update=changes)

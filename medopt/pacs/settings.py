"""`node.yaml`: every setting of a PACS node. An unknown key is refused with "did you mean"."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from medopt.config import Section, SeriesRules
from medopt.config.section import MEGABYTE, Positive
from medopt.config.study_file import read_keys
from medopt.core.errors import ConfigError
from medopt.core.run_paths import is_registered
from medopt.pacs.alert_settings import AlertSettings
from medopt.pacs.peers import AETitle, DimsePeer, Port, RemotePeer, explain_finding, with_absolute_paths


class WebSettings(Section):
    """A status page, `/health`, `/metrics`, and STOW-RS. Without this section the node has no HTTP port."""

    host: str = "127.0.0.1"
    """The address to listen on; one that other machines reach needs a key."""
    port: Port = 8043
    key_file: Path | None = None
    """A file with a key of at least 16 characters, which every request but /health must carry: as X-API-Key, as
    Authorization: Bearer, or, for browsers, as the password of any user. By default the environment's MEDOPT_API_KEY,
    or no key."""
    names: list[str] = Field(default_factory=list)
    """Names by which clients call this machine, beside its address; a request for another name is refused."""
    tls: bool = False
    """True: HTTPS with the certificate of the section `tls`."""
    stow: bool = False
    """True: instances are also accepted by STOW-RS, at /dicom-web/studies."""
    body_mb: Positive = 4096
    """The largest request of STOW-RS; limits.instance_mb bounds each of its instances."""

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


class PullSettings(Section):
    """Asks a PACS which studies it has, and fetches the instances that never reached this node."""

    source: RemotePeer
    """With aet, host and port it is asked by C-FIND and C-MOVE: it must know this node's AE title, address and port,
    and must be in `accept`. With url it is asked by QIDO-RS and WADO-RS."""
    modalities: list[Modality] = Field(min_length=1)
    """The modalities of the series to ask for, as in [CR, DX]."""
    days: Positive = 2
    """Ask for studies whose date is at most this many days ago."""
    every_minutes: Positive | None = 60
    """How often a running node asks, for the first time when it starts; null: only `medopt pacs reconcile` asks."""
    operation_minutes: Positive = 30
    """The longest time for one query, or for one retrieval, whatever the source answers meanwhile. Then it is ended,
    and tried anew in the next comparison."""

    @property
    def operation_seconds(self) -> float:
        """`operation_minutes` in seconds."""
        return 60 * self.operation_minutes


def _network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        raise ValueError("it takes an IP address or a network, as in 10.1.2.3 or 10.1.2.0/24") from None
    return text


Network = Annotated[str, AfterValidator(_network)]


class AcceptedSender(Section):
    """A system that may send: its AE title, and the addresses that it may send from."""

    aet: AETitle
    addresses: list[Network] = Field(min_length=1)
    """IP addresses or networks, as in [10.1.2.3, 10.1.4.0/24]."""

    def has_address(self, address: str) -> bool:
        """Whether an IP address is one of this sender's."""
        parsed = ip_address(address)
        unmapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(unmapped in ip_network(network, strict=False) for network in self.addresses)


class NodeLimits(Section):
    """Limits that no sender may exceed."""

    associations: int = Field(100, ge=1, le=1000)
    """Associations at the same time; a further one is rejected as a temporary congestion."""
    instance_mb: Positive = 1024
    """The largest instance. A connection that sends more is closed."""
    memory_mb: Positive = 4096
    """Memory for the unfinished instances of all senders together; a connection that exceeds it is closed, and its
    sender has to try again."""
    free_mb: float = Field(1024, ge=0)
    """While the spool's disk has less free space than this, every instance is refused (0xA700)."""
    idle_seconds: Positive = 60
    """A connection that sends nothing for this long is closed."""

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
    """A study during which the process ended this many times is parked."""
    seconds: Positive = 600
    """The longest time for one study."""
    memory_mb: Positive = 8192
    """The process is ended when it takes more memory (resident)."""


class ShadowSettings(Section):
    """A candidate release that answers the same studies beside the present one, for comparison. Nothing of it is sent.

    It runs in a process of its own, in time that nothing else needs, after the results of the release are in the spool.
    """

    release: Path
    """The candidate: a release folder, whose relative path starts at this file's folder; or models:/NAME@candidate."""
    model: Literal["int8", "float"] = "int8"
    series: SeriesRules | None = None
    """Which series of a study the candidate answers; null: as the node's `series` says."""
    seconds: Positive = 300
    """The longest time for one study; then the candidate's process is ended, and the study counts as failed."""
    memory_mb: Positive = 4096
    """The candidate's process is ended when it takes more memory (resident)."""
    priority: Literal["idle", "low"] = "idle"
    """idle: the candidate gets only processor time that no other program of this machine wants (SCHED_IDLE), which on
    a busy machine may be none; low: as much as the release's own process, which a candidate at work may then slow
    down."""
    backlog: int = Field(500, ge=1)
    """At most this many studies wait for the candidate; further ones are counted as skipped."""


class SendSettings(Section):
    """How often a result is sent before it is parked; `medopt pacs retry` starts again."""

    tries: int = Field(12, ge=1)
    first_seconds: Positive = 15
    """The wait after the first failure; it doubles with each further failure."""
    longest_seconds: Positive = 900
    """The longest wait between two attempts."""
    timeout_seconds: Positive = 30
    """How long a destination may take to respond."""
    commit_seconds: Positive = 900
    """How long a destination with commit: true may take to report that it keeps a result; then it is sent again."""


class ResultSettings(Section):
    """The objects that are sent back."""

    text: bool = True
    """True: send a Basic Text SR, too, for viewers that read no measurement reports."""
    heat_maps: int = Field(8, ge=0, le=100)
    """Secondary Captures that show where the evidence is, for findings that are present or undecided: of at most this
    many scans of a study, those with the highest probability. 0: none."""
    heat_map_data: bool = False
    """True: send each heat map as numbers, too, for viewers that lay maps over images: of CT, MR and others with a
    frame of reference a Parametric Map (what each place added to the finding's logit; float32, UCUM unit 1, content
    label EVIDENCE_LOGIT), of other single images (CR, DX, MG) a fractional Segmentation (its share of the highest
    evidence, content label EVIDENCE_SHARE). The maps lie on the pixels of the images. The PACS must accept these
    objects."""
    key_images: bool = False
    """True: send a Key Object Selection that names the images with a finding that is present."""
    declined: bool = True
    """True: a scan that the release declines gets a report, too, which says Undetermined. False: nothing is sent."""
    series_number: int = Field(9001, ge=1, le=2**31 - 100)
    """Series number of the measurement reports; the next numbers are those of text reports, heat maps, Parametric
    Maps, Segmentations and key images."""


class RetentionSettings(Section):
    """How long the spool keeps a study after every destination confirmed its results; never shorter.

    Parked studies and results stay until a person decides. The ledger remembers every study: sent again, it is
    acknowledged and gives no second result; a new image of it is refused.
    """

    days: float = Field(30, ge=0)
    """Days after the last change of the study."""
    gigabytes: Positive | None = None
    """When the spool holds more, the oldest of these studies are removed earlier, until it holds less."""


class TlsSettings(Section):
    """TLS with a certificate on both sides: a sender without a certificate of the authority is rejected."""

    certificate: Path
    """The node's certificate with its chain (PEM)."""
    key: Path
    """Its private key (PEM)."""
    authority: Path
    """The certificates (PEM) of the authorities that may sign the other side's certificate."""


class NodeSettings(Section):
    """One PACS node: its identity, who may send, which release it runs, where results go."""

    aet: AETitle
    """The node's own AE title; an association that calls another title is rejected."""
    host: str = "0.0.0.0"
    port: Port = 11112
    release: Path
    """A release folder, whose relative path starts at this file's folder; or models:/NAME@champion, as MLflow's
    registry has it when the node starts (a copy is kept here in case the registry does not answer)."""
    model: Literal["int8", "float"] = "int8"
    spool: Path
    """The folder for received instances and for the ledger, on a local disk; it holds patients' data."""
    accept: list[AcceptedSender] = Field(min_length=1)
    destinations: list[RemotePeer] = Field(min_length=1)
    """Each with aet, host and port, for C-STORE, or with url, for STOW-RS."""
    quiet_seconds: Positive = 60
    """A study is complete when no image of it came for this long and no association that sent any of it is open."""
    late_images: Literal["new_result", "refuse"] = "new_result"
    """What happens to a new image of a study that was answered: it leads to a new result, which names the earlier
    result, or it is refused."""
    series: SeriesRules | None = None
    """Which series of a study to answer, instead of the release's own rules."""
    limits: NodeLimits = NodeLimits()
    work: WorkerSettings = WorkerSettings()
    sending: SendSettings = SendSettings()
    results: ResultSettings = ResultSettings()
    retention: RetentionSettings = RetentionSettings()
    shadow: ShadowSettings | None = None
    tls: TlsSettings | None = None
    web: WebSettings | None = None
    pull: PullSettings | None = None
    alerts: AlertSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [peer.name for peer in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError(f"a destination is listed twice in {names}")
        dimse_peers = [peer for peer in self.destinations if isinstance(peer, DimsePeer)]
        if self.tls is None and any(peer.tls for peer in dimse_peers):
            raise ValueError("a destination with tls: true needs the node's section tls")
        accepted = {sender.aet for sender in self.accept}
        for peer in dimse_peers:
            if peer.commit and peer.aet not in accepted:
                raise ValueError(
                    f"destination {peer.aet} with commit: true reports to the node: name it in accept, too"
                )
        if self.tls is None and self.web is not None and self.web.tls:
            raise ValueError("web with tls: true needs the node's section tls")
        return self


def load_node_settings(path: Path) -> NodeSettings:
    """Read a node file; relative paths in it start at its folder.

    Raises ConfigError naming the file, the key and the nearest known key.
    """
    raw = read_keys(path, "node file", "aet, release, spool, accept and destinations")
    try:
        settings = NodeSettings.model_validate(raw)
    except ValidationError as error:
        findings = (explain_finding(finding, NodeSettings) for finding in error.errors()[:5])
        raise ConfigError(f"{path}: " + " ".join(findings)) from None
    return _with_absolute_paths(settings, path.resolve().parent)


def _with_absolute_paths(settings: NodeSettings, base: Path) -> NodeSettings:
    from_registry = is_registered(settings.release)
    changes: dict[str, object] = {
        "release": settings.release if from_registry else base / settings.release,
        "spool": base / settings.spool,
        "destinations": [with_absolute_paths(peer, base) for peer in settings.destinations],
    }
    if settings.shadow is not None and not is_registered(settings.shadow.release):
        changes["shadow"] = settings.shadow.model_copy(update={"release": base / settings.shadow.release})
    if settings.pull is not None:
        source = with_absolute_paths(settings.pull.source, base)
        changes["pull"] = settings.pull.model_copy(update={"source": source})
    if settings.tls is not None:
        files = {name: base / getattr(settings.tls, name) for name in TlsSettings.model_fields}
        changes["tls"] = settings.tls.model_copy(update=files)
    if settings.web is not None and settings.web.key_file is not None:
        changes["web"] = settings.web.model_copy(update={"key_file": base / settings.web.key_file})
    if settings.alerts is not None:
        changes["alerts"] = settings.alerts.with_absolute_paths(base)
    return settings.model_copy(update=changes)

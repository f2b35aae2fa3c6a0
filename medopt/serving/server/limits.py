"""The limits of a server: sizes, times, the queue; and the one exception by which a request is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medopt.core.provenance import physical_cores
from medopt.serving.server.bounded_http import ConnectionLimits

Kind = Literal["malformed", "encoding", "key", "unknown", "size", "busy", "not_ready", "slow", "internal"]
HTTP: dict[Kind, int] = {
    "malformed": 400, "encoding": 415, "key": 401, "unknown": 404, "size": 413, "busy": 429,
    "not_ready": 503, "slow": 504, "internal": 500,
}  # fmt: skip
GRPC: dict[Kind, str] = {
    "malformed": "INVALID_ARGUMENT", "encoding": "INVALID_ARGUMENT", "key": "UNAUTHENTICATED", "unknown": "NOT_FOUND",
    "size": "OUT_OF_RANGE",
    "busy": "RESOURCE_EXHAUSTED", "not_ready": "UNAVAILABLE", "slow": "DEADLINE_EXCEEDED", "internal": "INTERNAL",
}  # fmt: skip
"""Names of grpc.StatusCode. gRPC itself refuses a message above the size limit, with RESOURCE_EXHAUSTED."""
MEBI = 1 << 20


class Refused(Exception):
    """A request that gets no answer: the kind decides the status code, the text goes to the client.

    The text contains no patient's name, no file name and no path, whatever was sent.
    """

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text
        self.logged = False
        """Whether the log has its line."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The bounds of a server's memory and time."""

    max_queue: int = 64
    """Images of all releases at once: being read, waiting, and in the model."""
    max_body: int = 64 * MEBI
    """Bytes of one request."""
    max_unpacked: int = 1024 * MEBI
    """Bytes that a zip or a .nii.gz may unpack to."""
    max_files: int = 5000
    """Files in a zip of a series."""
    max_pixels: int = 1 << 28
    """Pixels or voxels that a scan's header may claim: 512 x 512 x 1024."""
    gather_seconds: float = 0.002
    """How long a batch that is not full waits for requests that are on their way."""
    body_seconds: float = 60.0
    """For a request's body to arrive."""
    window_seconds: float = 10.0
    """The span in which a body that is not complete must have grown by `window_bytes`."""
    window_bytes: int = 64 * 1024
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    """Of the REST port; the gRPC port takes as many in all."""
    read_seconds: float = 30.0
    """For one request's scans to be read and prepared."""
    answer_seconds: float = 120.0
    """For a request as a whole, once it has arrived."""
    grace_seconds: float = 30.0
    """For the requests that are being answered at SIGTERM."""
    readers: int = field(default_factory=lambda: min(8, physical_cores()))
    """Threads that read scans."""

    @property
    def max_bytes(self) -> int:
        """Bytes of all requests at once."""
        return max(4 * self.max_body, 256 * MEBI)


class Admission:
    """Counts the images and bytes being processed, and refuses more than the limits. Used by one event loop only."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self.images = 0
        self.bytes = 0

    def take(self, images: int, size: int = 0) -> None:
        """Raises Refused ("busy", or "size" for more than would ever fit)."""
        max_images, max_bytes = self._limits.max_queue, self._limits.max_bytes
        if images > max_images:
            raise Refused("size", f"The request holds more images than this server queues ({max_images}); send fewer.")
        if images:
            self.check_queue(images)
        if self.bytes + size > max_bytes:
            used = f"{self.bytes >> 20} of {max_bytes >> 20} MiB in hand"
            raise Refused("busy", f"The memory for requests is full ({used}). Try again later.")
        self.images += images
        self.bytes += size

    def check_queue(self, images: int = 1) -> None:
        """Raises Refused where so many images more have no place."""
        most = self._limits.max_queue
        if self.images + images > most:
            raise Refused("busy", f"The queue is full ({self.images} of {most} images in hand). Try again later.")

    def give(self, images: int, size: int = 0) -> None:
        """Release what `take` counted."""
        self.images -= images
        self.bytes -= size

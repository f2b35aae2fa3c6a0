"""The releases of a server: each is verified before it answers, and replaced without losing a request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medopt.config import Covariate
from medopt.core.errors import MedoptError, ReleaseError
from medopt.core.files import file_digest
from medopt.release.golden import replay
from medopt.release.layout import INFO, SUMS, Kind, ReleaseInfo
from medopt.release.predictor import Release
from medopt.release.sbom import runtime_differences
from medopt.serving.server.batcher import Batcher
from medopt.serving.server.limits import Refused, ServerLimits
from medopt.serving.server.log import event
from medopt.serving.server.metrics import ServerMetrics

SHORT = 12
OPENING = "it is being opened and its golden cases are replayed"


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that may serve: its files and chain unchanged, its golden cases answered as when it was built."""

    release: Release
    digest: str
    """SHA-256 of its list of checksums, and so of all its files."""
    model_digest: str
    model_file: Path
    """Where its model was read; another release may stand there by now."""
    runtime_differs: Sequence[str] = ()
    """Packages that are not those of its list."""

    @property
    def version(self) -> str:
        """The version that clients request: the beginning of the digest."""
        return self.digest[:SHORT]


def open_release(folder: Path, kind: Kind) -> VerifiedRelease:
    """Open a release as it will serve, and replay its golden cases; raises ReleaseError with the reason."""
    try:
        release = Release.open(folder, kind, mode="throughput")
        replay(folder, release.info, [release])
        model = release.info.models[kind]
        file = (folder / model.file).resolve()
        differs = runtime_differences(folder) or ()
        return VerifiedRelease(release, file_digest(folder / SUMS), file_digest(file), file, differs)
    except MedoptError as error:
        raise ReleaseError(str(error)) from None
    except Exception as error:  # a file may match its checksum and still hold nonsense
        raise ReleaseError(f"{folder} cannot be opened as a release ({type(error).__name__}).") from None


def name_of(folder: Path) -> str:
    """The name by which clients request a release: its study's; where that cannot be read, the folder's."""
    try:
        name = str(json.loads((folder / INFO).read_bytes())["study"])
    except (OSError, ValueError, KeyError, TypeError):
        name = folder.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64]


class ServedRelease:
    """A verified release at work: its batcher, and how many requests are using it."""

    def __init__(self, verified: VerifiedRelease, name: str, limits: ServerLimits, metrics: ServerMetrics) -> None:
        self.verified, self.name = verified, name
        release = verified.release
        self.batcher = Batcher(
            release.predict_batch, release.setting.batch, limits.gather_seconds, metrics.batch(name).observe
        )
        self._requests = 0
        self._retired = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a request is answered; a release that was replaced is closed after the last of them."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._close_if_done()

    def retire(self) -> None:
        """No new request will come."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._requests:
            self.batcher.close()


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """What a folder serves. `state` is LOADING, READY or UNAVAILABLE, as the repository extension names them.

    `version` is empty where nothing serves; `reason` says why, or why a newer release of the folder was refused.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(slots=True)
class ServedFolder:
    """A folder given to the server, and the release from it that serves, if any."""

    folder: Path
    name: str
    served: ServedRelease | None = None
    reason: str = OPENING
    """Why nothing serves from here, or why the newest release of this folder does not."""

    @property
    def version(self) -> str:
        """The serving release's version, empty where there is none."""
        return self.served.verified.version if self.served else ""

    @property
    def state(self) -> ReleaseState:
        """READY while a release serves, LOADING before the first try, else UNAVAILABLE."""
        waiting = "LOADING" if self.reason == OPENING else "UNAVAILABLE"
        return ReleaseState(self.name, self.version, "READY" if self.served else waiting, self.reason)


class ReleaseRegistry:
    """All folders of a server. Belongs to one event loop; releases are opened in a thread, one at a time."""

    def __init__(self, folders: Sequence[Path], kind: Kind, limits: ServerLimits, metrics: ServerMetrics) -> None:
        self._folders = [ServedFolder(folder, name_of(folder)) for folder in folders]
        self._kind, self._limits, self._metrics = kind, limits, metrics
        self._opening = asyncio.Lock()

    def named(self, name: str) -> list[ServedFolder]:
        """The folders of a name; raises Refused where there is none."""
        matching = [folder for folder in self._folders if folder.name == name]
        if not matching:
            raise Refused("unknown", f"There is no release of that name here; GET /v2/models lists {len(self.names)}.")
        return matching

    @property
    def names(self) -> list[str]:
        """Each name once."""
        return list(dict.fromkeys(folder.name for folder in self._folders))

    def channels(self) -> dict[str, tuple[str, ...]]:
        """The images of a case of each name that serves now; empty where a case is one image."""
        return {name: info.prepare.channel_names for name, info in self.infos().items()}

    def covariates(self) -> dict[str, tuple[Covariate, ...]]:
        """What each name that serves now asks for beside the image; empty where it is nothing."""
        return {name: tuple(info.covariates) for name, info in self.infos().items()}

    def infos(self) -> dict[str, ReleaseInfo]:
        """The release of each name that serves now."""
        return {folder.name: folder.served.verified.release.info for folder in self._folders if folder.served}

    @property
    def ready(self) -> bool:
        """Whether every folder given to the server serves a release."""
        return all(folder.served for folder in self._folders)

    def states(self, name: str | None = None) -> tuple[ReleaseState, ...]:
        """What each folder (of a name) serves, and what is wrong there."""
        return tuple(folder.state for folder in self._folders if name in (None, folder.name))

    def find(self, name: str, version: str = "") -> ServedRelease:
        """The release that answers: of that version, or the last one of that name that serves. Raises Refused."""
        folders = self.named(name)
        serving = [folder.served for folder in folders if folder.served]
        matching = [release for release in serving if not version or release.verified.version == version]
        if matching:
            return matching[-1]
        if version and serving:
            raise Refused("unknown", f"This version of {name} is not served here; GET /v2/models/{name} lists them.")
        raise Refused("not_ready", f"{name} is not ready: {folders[-1].reason}")

    async def open_all(self) -> None:
        """Open every folder in turn; one that is refused does not stop the others."""
        for folder in self._folders:
            await self._open(folder)

    async def reload(self, name: str) -> None:
        """Open the folders of a name again, as when another release was moved there; what is the same stays as it is.

        A release that is refused does not replace the one that serves. Raises Refused with the reason.
        """
        for folder in self.named(name):
            await self._open(folder)
        reasons = [folder.reason for folder in self.named(name) if folder.reason]
        if reasons:
            raise Refused("not_ready", f"{name} was not loaded: {reasons[0]}")

    async def _open(self, folder: ServedFolder) -> None:
        async with self._opening:
            try:
                verified = await asyncio.to_thread(open_release, folder.folder, self._kind)
                if name_of(folder.folder) != folder.name:
                    raise ReleaseError(
                        f"The release now in this folder is of another study ({name_of(folder.folder)}), and this "
                        f"folder serves {folder.name}. Start the server with it."
                    )
            except ReleaseError as error:
                folder.reason = str(error).replace(str(folder.folder), folder.folder.name)
                self._log(folder, logging.ERROR)
                return
            folder.reason = ""
            if folder.served is None or folder.served.verified.digest != verified.digest:
                before, folder.served = folder.served, self._serve(verified, folder.name)
                if before is not None:
                    before.retire()
                    self._metrics.ready(folder.name, before.verified.version, False)
            self._log(folder, logging.INFO)
            if verified.runtime_differs:
                facts = {"model": folder.name, "version": folder.version, "packages": verified.runtime_differs}
                event(logging.WARNING, "runtime differs", facts)

    def _serve(self, verified: VerifiedRelease, name: str) -> ServedRelease:
        return ServedRelease(verified, name, self._limits, self._metrics)

    def _log(self, folder: ServedFolder, level: int) -> None:
        note = folder.served.verified.release.note if folder.served and not folder.reason else ""
        self._metrics.ready(folder.name, folder.version, folder.served is not None)
        state = folder.state
        line = {"model": state.name, "version": state.version, "state": state.state, "reason": state.reason or note}
        event(level, "release", line)

    def close(self) -> None:
        """Retire every release."""
        for folder in self._folders:
            if folder.served:
                folder.served.retire()

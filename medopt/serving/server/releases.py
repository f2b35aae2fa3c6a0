"""The releases of a server: each checked before it answers, replaced without losing a request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medopt.core.errors import MedoptError, ReleaseError
from medopt.core.files import file_digest
from medopt.release.golden import replay
from medopt.release.layout import INFO, SUMS, Kind
from medopt.release.predictor import Predictor
from medopt.serving.server.batcher import Batcher
from medopt.serving.server.limits import Refused, ServerLimits
from medopt.serving.server.log import event
from medopt.serving.server.metrics import Measures

SHORT = 12
OPENING = "it is being opened and its golden cases are replayed"


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that may serve: unchanged, its chain the same, its golden cases answered as when it was built."""

    predictor: Predictor
    digest: str
    """SHA-256 of its list of checksums, and so of all that is in it."""
    model_digest: str

    @property
    def version(self) -> str:
        """What clients ask for: the beginning of the digest."""
        return self.digest[:SHORT]


def open_release(folder: Path, kind: Kind) -> VerifiedRelease:
    """Open a release and replay its golden cases as it will serve; raises ReleaseError with the reason."""
    try:
        predictor = Predictor.open(folder, kind, mode="throughput")
        replay(folder, predictor.info, [predictor])
        model = predictor.info.models[kind]
        return VerifiedRelease(predictor, file_digest(folder / SUMS), file_digest(folder / model.file))
    except MedoptError as error:
        raise ReleaseError(str(error)) from None
    except Exception as error:  # a file that is sound by its checksum and says nonsense all the same
        raise ReleaseError(f"{folder} cannot be opened as a release ({type(error).__name__}).") from None


def name_of(folder: Path) -> str:
    """The name under which a release is asked for: its study's; where that cannot be read, the folder's."""
    try:
        name = str(json.loads((folder / INFO).read_bytes())["study"])
    except (OSError, ValueError, KeyError, TypeError):
        name = folder.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:64]


class Served:
    """A checked release at work: its batcher, and how many requests hold it."""

    def __init__(self, checked: VerifiedRelease, name: str, limits: ServerLimits, measures: Measures) -> None:
        self.checked, self.name = checked, name
        predictor = checked.predictor
        self.batcher = Batcher(
            predictor.predict, predictor.setting.batch, limits.gather_seconds, measures.batch(name).observe
        )
        self._holders = 0
        self._retired = asyncio.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While a request is answered; a release that was replaced is closed after the last of them."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._retired.is_set() and not self._holders:
                self.batcher.close()

    def retire(self) -> None:
        """No new request will come."""
        self._retired.set()
        if not self._holders:
            self.batcher.close()


@dataclass(slots=True)
class ServedFolder:
    """A folder that the server was told of, and the release from there that serves, if any."""

    folder: Path
    name: str
    served: Served | None = None
    reason: str = OPENING
    """Why nothing serves from here, or why the newest release of this folder does not."""

    @property
    def version(self) -> str:
        """The serving release's version, empty where there is none."""
        return self.served.checked.version if self.served else ""


class ReleaseRegistry:
    """All places. Belongs to one event loop; releases are opened in a thread, one at a time."""

    def __init__(self, folders: Sequence[Path], kind: Kind, limits: ServerLimits, measures: Measures) -> None:
        self.places = [ServedFolder(folder, name_of(folder)) for folder in folders]
        self._kind, self._limits, self._measures = kind, limits, measures
        self._opening = asyncio.Lock()

    def named(self, name: str) -> list[ServedFolder]:
        """The places of a name; raises Refused where there is none."""
        found = [place for place in self.places if place.name == name]
        if not found:
            raise Refused("unknown", f"There is no release of that name here; GET /v2/models lists {len(self.names)}.")
        return found

    @property
    def names(self) -> list[str]:
        """Each name once."""
        return list(dict.fromkeys(place.name for place in self.places))

    @property
    def ready(self) -> bool:
        """Whether every release that the server was told of serves."""
        return all(place.served for place in self.places)

    def reasons(self) -> list[dict[str, str]]:
        """What each place serves, and what is wrong there."""
        return [
            {"name": place.name, "version": place.version, "state": state_of(place), "reason": place.reason}
            for place in self.places
        ]

    def find(self, name: str, version: str = "") -> Served:
        """The release that answers: of that version, or the last one of that name that serves. Raises Refused."""
        places = self.named(name)
        serving = [place.served for place in places if place.served]
        found = [one for one in serving if not version or one.checked.version == version]
        if found:
            return found[-1]
        if version and serving:
            raise Refused("unknown", f"This version of {name} is not served here; GET /v2/models/{name} lists them.")
        raise Refused("not_ready", f"{name} is not ready: {places[-1].reason}")

    async def open_all(self) -> None:
        """Open every place in turn; one that is refused does not stop the others."""
        for place in self.places:
            await self._open(place)

    async def reload(self, name: str) -> None:
        """Open the places of a name again, as when another release was moved there; what is the same stays as it is.

        A release that is refused does not replace the one that serves. Raises Refused with the reason.
        """
        for place in self.named(name):
            await self._open(place)
        wrong = [place.reason for place in self.named(name) if place.reason]
        if wrong:
            raise Refused("not_ready", f"{name} was not loaded: {wrong[0]}")

    async def _open(self, place: ServedFolder) -> None:
        async with self._opening:
            try:
                checked = await asyncio.to_thread(open_release, place.folder, self._kind)
                if name_of(place.folder) != place.name:
                    raise ReleaseError(
                        f"The release now in this folder is of another study ({name_of(place.folder)}), and this place "
                        f"serves {place.name}. Start the server with it."
                    )
            except ReleaseError as error:
                place.reason = str(error).replace(str(place.folder), place.folder.name)
                self._tell(place, logging.ERROR)
                return
            place.reason = ""
            if place.served is None or place.served.checked.digest != checked.digest:
                before, place.served = place.served, Served(checked, place.name, self._limits, self._measures)
                if before is not None:
                    before.retire()
                    self._measures.ready(place.name, before.checked.version, False)
            self._tell(place, logging.INFO)

    def _tell(self, place: ServedFolder, level: int) -> None:
        note = place.served.checked.predictor.note if place.served and not place.reason else ""
        self._measures.ready(place.name, place.version, place.served is not None)
        told = {"model": place.name, "version": place.version, "state": state_of(place), "reason": place.reason or note}
        event(level, "release", told)

    def close(self) -> None:
        """Let all go."""
        for place in self.places:
            if place.served:
                place.served.retire()


def state_of(place: ServedFolder) -> str:
    """READY or UNAVAILABLE, as the repository extension of the protocol names them; LOADING before the first try."""
    if place.served:
        return "READY"
    return "LOADING" if place.reason == OPENING else "UNAVAILABLE"

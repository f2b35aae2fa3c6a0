"""Heat maps for the try page: PNG files in memory, drawn by one thread, from the very model that answered."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from medopt.core.errors import DataError
from medopt.core.files import file_digest
from medopt.core.format import count_text
from medopt.inference.evidence_map import AnyEvidence, Evidence
from medopt.release.predictor import Answer
from medopt.serving.heat_maps import evidence_pictures, mapped_labels
from medopt.serving.server.decode_scan import ScanBytes, read_bytes
from medopt.serving.server.limits import ServerLimits
from medopt.serving.server.releases import ServedRelease, VerifiedRelease

_MAX_PICTURES = 4


@dataclass(frozen=True, slots=True)
class Pictures:
    """PNG files by their label, and why there are none or fewer."""

    by_label: tuple[tuple[str, bytes], ...] = ()
    note: str = ""


class PictureMaker:
    """Draws where the evidence for a scan's findings lay. Belongs to one event loop; keeps one network open."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, "medopt-evidence")  # an engine's request is for one thread
        self._opened: tuple[str, AnyEvidence | None] = ("", None)

    async def of(self, served: ServedRelease, scan: ScanBytes, answer: Answer) -> Pictures:
        """The pictures for an answered scan; whatever fails is a note, as the answer stands without them."""
        if answer.declined:
            return Pictures()
        if not mapped_labels(served.verified.release, answer):
            return Pictures(note="No finding is present, so there is no heat map.")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                return await loop.run_in_executor(self._thread, self._draw, served.verified, scan, answer)
        except TimeoutError:
            return Pictures(note=f"The heat map was not drawn within {self._limits.read_seconds:g} s.")
        except DataError as error:
            return Pictures(note=f"There is no heat map. {error}")
        except Exception as error:  # its text may quote the scan
            return Pictures(note=f"The heat map could not be drawn ({type(error).__name__}).")

    def _draw(self, verified: VerifiedRelease, scan: ScanBytes, answer: Answer) -> Pictures:
        evidence = self._evidence(verified)
        volume = read_bytes(verified.release, scan, self._limits)
        pictures = []
        drawing = evidence_pictures(verified.release, evidence, volume, answer, "the scan")
        for label, pixels in islice(drawing, _MAX_PICTURES):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            pictures.append((label, png.getvalue()))
        more = len(mapped_labels(verified.release, answer)) - len(pictures)
        return Pictures(tuple(pictures), f"{count_text(more, 'more finding')} without a picture here." if more else "")

    def _evidence(self, verified: VerifiedRelease) -> AnyEvidence:
        """The model opened as a network of places; raises DataError where there is none."""
        if self._opened[0] != verified.model_digest:
            if not verified.model_file.is_file() or file_digest(verified.model_file) != verified.model_digest:
                raise DataError("Another release is now in the folder of the one that answered; load it first.")
            self._opened = (verified.model_digest, Evidence.open(verified.model_file))
        if self._opened[1] is None:
            raise DataError("This release's model does not average over positions, so no evidence can be shown for it.")
        return self._opened[1]

"""Which images a start was trained on, by content: what refuses it for a study that tests on one of them.

An image has two digests: of its file's bytes, and of its pixels as they are read, which another file format does not
change. A pretrained start carries the first 8 bytes of each, sorted: of two images by chance alike once in 10^19. A
run keeps those of its files beside its checkpoints.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.files import write_text
from medopt.core.records import Case, FloatArray
from medopt.core.reporter import Reporter, SilentReporter
from medopt.data.cache import image_digest
from medopt.imaging.parallel import parallel_map
from medopt.manifest.findings import display_name
from medopt.manifest.image_facts import ImageFacts, read_image
from medopt.manifest.table import single_images

SEEN = "images_seen"  # the fact of a start's file that holds them
SEEN_FILE = "images_seen.txt"  # beside the checkpoints of a run, in a release, and beside imported weights
CONVERTED = "medopt_start"  # what a converted start says of itself, in its header
_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ImageContent:
    """One case by what it holds: the two digests of each of its images, and its facts with their thumbnails."""

    digests: frozenset[bytes]
    facts: ImageFacts

    @property
    def thumbnails(self) -> list[FloatArray]:
        """The thumbnail of each of its images."""
        return [image.thumbnail for image in self.facts.images if image.thumbnail is not None]


def read_content(
    cases: Sequence[Case], root: Path, reporter: Reporter | None = None, workers: int | None = None
) -> list[ImageContent]:
    """The content of every image below `root`, in the order of the cases; one that cannot be read has a `problem`."""
    advance, found = (reporter or SilentReporter()).progress(len(cases), "reading images"), []
    digests: dict[str, str] = {}
    for content in parallel_map(lambda case: _content(case, root, digests), cases, workers):
        found.append(content)
        advance(1)
    return found


def _content(case: Case, root: Path, digests: dict[str, str]) -> ImageContent:
    facts = read_image(case, root)
    if facts.problem:
        return ImageContent(frozenset(), facts)
    pixels = frozenset(bytes.fromhex(image.digest)[:_LENGTH] for image in facts.images)
    return ImageContent(pixels | _file_digests(case, root, digests), facts)


def _file_digests(case: Case, root: Path, digests: dict[str, str]) -> frozenset[bytes]:
    """Of the file of each image of a case; `digests` keeps those of whole files, which may hold many images."""
    contents = [image_digest(root, image.image, digests) for image in single_images(case)]
    return frozenset(hashlib.sha256(content.encode()).digest()[:_LENGTH] for content in contents)


def write_seen(folder: Path, cases: Iterable[Case], root: Path, earlier: Iterable[bytes] = ()) -> None:
    """Write beside a run's checkpoints which files it trains on, so that the run can be another study's start.

    `earlier` are the digests of what its own start and its teacher have seen.
    """
    digests: dict[str, str] = {}
    own = frozenset[bytes]().union(*(_file_digests(case, root, digests) for case in cases))
    write_text(folder / SEEN_FILE, encode_seen(own.union(earlier)))


def encode_seen(digests: Iterable[bytes]) -> str:
    """Digests as text, sorted: the same for the same images."""
    return base64.b64encode(b"".join(sorted(set(digests)))).decode()


def images_seen(path: Path) -> frozenset[bytes]:
    """The digests of the images that a start was trained on; empty for a file that says nothing of it.

    `path` may lie in a run's folder, also in its release. Raises ConfigError where the file cannot be read, or its list
    is damaged.
    """
    lists = [path.with_name(SEEN_FILE), path.parent.parent / "checkpoints" / SEEN_FILE]
    found = next((one for one in lists if one.is_file()), None)
    if found is None and path.suffix != ".safetensors":
        return frozenset()
    try:
        raw = base64.b64decode(found.read_text(encoding="ascii") if found else _noted(path), validate=True)
    except FileNotFoundError:
        raise ConfigError(f"There is no file of weights {path}.") from None
    except (OSError, SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path.name}: the list of the images that it has seen cannot be read ({error}).") from None
    if len(raw) % _LENGTH:
        raise ConfigError(f"{path.name}: the list of the images that it has seen is damaged ({len(raw)} bytes).")
    return frozenset(raw[at : at + _LENGTH] for at in range(0, len(raw), _LENGTH))


def _noted(path: Path) -> str:
    """The list in the notes of a file of weights; also of one that was converted."""
    with safe_open(path, framework="pt") as stream:
        notes = stream.metadata() or {}
    text: str = json.loads(notes.get("medopt", "{}")).get("facts", {}).get(SEEN, "")
    return text or str(json.loads(notes.get(CONVERTED, "{}")).get(SEEN, ""))


def refuse_seen(path: Path, test: Sequence[Case], root: Path, reporter: Reporter | None = None) -> None:
    """Raise DataError where a start was trained on an image that a study tests on.

    `test` are the cases of the study's test split, below `root`; they are read only where the start has a list. Also
    raises DataError where one of them cannot be read.
    """
    seen = images_seen(path)
    if not seen or not test:
        return
    content = read_content(test, root, reporter)
    if unread := [f"{display_name(c)}: {i.facts.problem}" for c, i in zip(test, content, strict=True) if not i.digests]:
        raise DataError(f"Whether the start {path.name} has seen the test images cannot be told: {listed(unread, 3)}.")
    known = [display_name(case) for case, image in zip(test, content, strict=True) if image.digests & seen]
    if known:
        raise DataError(
            f"The start {path.name} was trained on {len(known)} of the {len(test)} images of the test split, so every "
            f"figure would be too good: {listed(known, 3)}. Train the start without them (medopt pretrain has "
            "--leave-out for this), or take another one."
        )

"""A scan's bytes, as a client sent them, to a prepared image, by way of temporary files with neutral names.

Nothing from the client becomes a name or a path, nothing is unpacked beyond the limits, and the sizes that a header
claims are checked before anything is decoded.
"""

from __future__ import annotations

import io
import math
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging.channels import ScanPath, scan_name
from medopt.imaging.dicom_file import is_dicom
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.raster import FORMATS, is_image
from medopt.imaging.redact import redacted
from medopt.imaging.scan_path import safe_relative_path
from medopt.release.predictor import PreparedCase, Release
from medopt.serving.batch import IGNORED
from medopt.serving.server.limits import ServerLimits

ScanBytes = bytes | tuple[bytes, ...]
"""A scan's bytes; of a case of several images those of its channels in their order, b"" for a missing one."""
PREFIX = "medopt-serve-"
_CHUNK = 1 << 20
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_CLAIMING = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"]


def prepare_bytes(
    release: Release, data: ScanBytes, limits: ServerLimits, covariates: Mapping[str, object] | None = None
) -> PreparedCase:
    """One scan as the model takes it: a DICOM, NIfTI or image file, or a zip of one scan's files.

    Of a case of several images each is such a file; `covariates` are those that the request gives. Read by the
    release's own chain, as `medopt predict` does. Raises DataError with a reason that quotes nothing from the
    client: a file of a zip is named by its number.
    """
    with _scan_path(release, data, limits) as place:
        return release.prepare_case(place, covariates)


def read_bytes(release: Release, data: ScanBytes, limits: ServerLimits) -> Volume:
    """The same scan's own pixels, as the chain reads them; raises DataError."""
    with _scan_path(release, data, limits) as place:
        return release.chain.read(place)


@contextmanager
def _scan_path(release: Release, data: ScanBytes, limits: ServerLimits) -> Iterator[ScanPath]:
    """The scan as a file or folder until the end of the block, whose DataError loses every word of the client's."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        if isinstance(data, bytes):
            place = _placed(data, folder, limits)
            try:
                _check_claims([place], limits)
                yield place
            except DataError as error:
                raise DataError(_neutral(redacted(str(error), place), place, folder)) from None
        else:
            with _case_paths(release.info.prepare.channel_names, data, folder, limits) as places:
                yield places


@contextmanager
def _case_paths(
    names: Sequence[str], images: Sequence[bytes], folder: Path, limits: ServerLimits
) -> Iterator[tuple[str | Path, ...]]:
    """The images of a case, each in a folder of its own; "" for a missing one. An error names them as the release."""
    places: list[str | Path] = []
    left = limits.max_unpacked  # of all images together
    for name, data in zip(names, images, strict=True):
        if data:
            below = folder / str(len(places))
            below.mkdir()
            try:
                places.append(_placed(data, below, replace(limits, max_unpacked=left)))
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
            left -= sum(path.stat().st_size for path in below.rglob("*") if path.is_file())
        else:
            places.append("")
    try:
        _check_claims([place for place in places if isinstance(place, Path)], limits)
        yield tuple(places)
    except DataError as error:
        text = str(error).removeprefix(f"{scan_name(tuple(places))}: ")
        for name, place in zip(names, places, strict=True):
            if isinstance(place, Path):
                text = redacted(text, place).replace(f"{place} ({name})", str(place))
                text = text.replace(str(place), f"the image {name}")
        raise DataError(_neutral(text, folder, folder)) from None


def _neutral(text: str, place: Path, folder: Path) -> str:
    what = "the series" if place.is_dir() else "the scan"
    for name, neutral in ((str(place), what), (str(folder), "the scan"), (place.name, what)):
        text = text.replace(name, neutral)
    return text[:1].upper() + text[1:]


def _placed(data: bytes, folder: Path, limits: ServerLimits) -> Path:
    """The bytes as a file, or as a folder of one series' files."""
    if data.startswith(_ZIP):
        return _unpacked(data, folder / "medopt-series", limits)
    return _written(data, folder, "medopt-scan", limits)


def _written(data: bytes, folder: Path, name: str, limits: ServerLimits) -> Path:
    """One file; NIfTI, which the reader recognizes by its name, gets the name from its content."""
    if data.startswith(_GZIP):
        data = _gunzipped(data, limits.max_unpacked)
    path = folder / (f"{name}.nii" if _is_nifti(data) else name)
    path.write_bytes(data)
    return path


def _is_nifti(data: bytes) -> bool:
    """The magic number of a single file of NIfTI-1 (at byte 344) or NIfTI-2 (at byte 4)."""
    return data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0"


def _gunzipped(data: bytes, max_size: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, max_size)
    except zlib.error:
        raise DataError("The scan is damaged: its gzip stream cannot be unpacked.") from None
    if unpacker.unconsumed_tail:
        raise DataError(f"The scan unpacks to more than {max_size >> 20} MiB, which this server does not take.")
    if not unpacker.eof:
        raise DataError("The scan is damaged: its gzip stream breaks off.")
    return unpacked


def _unpacked(data: bytes, folder: Path, limits: ServerLimits) -> Path:
    """The files of a zip, named by numbers; a single file is the scan itself."""
    folder.mkdir()
    left, count = limits.max_unpacked, 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            members = _members(opened, limits)
            for count, info in enumerate(members, 1):
                with opened.open(info) as source:
                    piece = source.read(min(info.file_size, left) + 1)
                left -= len(piece)
                if left < 0 or len(piece) > info.file_size:
                    raise DataError("The zip unpacks to more than it says.")
                path = _written(piece, folder, f"{count:05}", limits)
    except DataError:
        raise
    except Exception as error:  # each decoder of zipfile has its own exceptions
        raise DataError(f"The zip is damaged, or packed in a way that is not read ({type(error).__name__}).") from None
    return path if count == 1 else folder


def _members(opened: zipfile.ZipFile, limits: ServerLimits) -> list[zipfile.ZipInfo]:
    """The files that may be images; raises DataError for an unsafe or damaged zip."""
    infos = [info for info in opened.infolist() if not info.is_dir()]
    total = sum(info.file_size for info in infos)
    if len(infos) > limits.max_files or total > limits.max_unpacked:
        raise DataError(
            f"The zip holds {len(infos)} files of {total >> 20} MiB; this server takes {limits.max_files} files and "
            f"{limits.max_unpacked >> 20} MiB of one scan."
        )
    for info in infos:
        try:
            safe_relative_path(info.filename)
        except ValueError as error:
            raise DataError(f"The zip holds a path that is not sound: {error}.") from None
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError("The zip holds a link, which is not followed.")
        if info.flag_bits & 1:
            raise DataError("The zip is encrypted.")
    images = [info for info in infos if _may_be_image(PurePosixPath(info.filename))]
    if not images:
        raise DataError("The zip holds no file that could be a scan.")
    return images


def _may_be_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() not in IGNORED and path.name[0] != "." and path.name.upper() != "DICOMDIR"


def _check_claims(places: Sequence[Path], limits: ServerLimits) -> None:
    """Raises DataError where the headers claim more pixels than the server takes."""
    files = [file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    claimed = 0
    for path in files:
        claimed += max(_claims(path), default=0)
        if claimed > limits.max_pixels:
            raise DataError(f"The scan claims more than {limits.max_pixels >> 20} Mi pixels, more than is taken here.")


def _claims(path: Path) -> Iterator[int]:
    """Values that a file's header claims; an unreadable file yields none, and is refused when it is read."""
    with path.open("rb") as stream:
        head = stream.read(132)
    with suppress(Exception):
        if is_image(head):
            with Image.open(path, formats=FORMATS) as image:
                yield image.width * image.height * len(image.getbands())
        elif path.suffix == ".nii":
            import nibabel

            sides = [int(side) for side in nibabel.load(path).shape]  # type: ignore[attr-defined]
            yield math.prod(max(side, 0) for side in sides)
        elif is_dicom(head):
            header = parse_dicom(path, force=True, stop_before_pixels=True, specific_tags=_CLAIMING)
            yield math.prod(max(int(header.get(key) or 1), 0) for key in _CLAIMING)

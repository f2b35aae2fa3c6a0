"""The server's parts alone: unpacking that stays bounded, batches, the queue's count, the wire."""

from __future__ import annotations

import asyncio
import gzip
import io
import stat
import struct
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pytest
from imaging.scans_made import canonical_affine, letter_f, series, slices
from PIL import Image

from medopt.core.errors import ConfigError, DataError
from medopt.core.records import FloatArray
from medopt.imaging import read_scan
from medopt.imaging.acquisition import Acquisition
from medopt.release.predictor import Answer, PreparedCase, Release
from medopt.serving.server.auth import VARIABLE, Key
from medopt.serving.server.batcher import Batcher
from medopt.serving.server.decode_scan import prepare_bytes
from medopt.serving.server.limits import Admission, Refused, ServerLimits
from medopt.serving.server.service import InferenceResponse
from medopt.serving.server.v2_codec import OutputSelection, from_raw, parse_request, to_raw, write_response

SMALL = ServerLimits(max_queue=4, max_body=1000, max_unpacked=200_000, max_files=6, max_pixels=100_000)


class Reader:
    """A release's way of reading: the pixels as they are."""

    def prepare_case(self, path: Any, covariates: object = None) -> PreparedCase:
        volume = read_scan(path)
        return PreparedCase(volume.array, Acquisition.from_volume(volume), {})


def prepared(data: bytes, limits: ServerLimits = SMALL) -> FloatArray:
    return prepare_bytes(cast(Release, Reader()), data, limits)[0]


def picture(side: int, value: int = 7) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def volume(*shape: int) -> bytes:
    return cast(
        bytes, nibabel.Nifti1Image(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), np.eye(4)).to_bytes()
    )


def zipped(members: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_every_form_of_a_scan_is_told_by_its_content() -> None:
    nifti = volume(4, 5, 6)
    for data in (nifti, gzip.compress(nifti), zipped({"x.bin": gzip.compress(nifti)})):
        assert prepared(data).shape == (1, 6, 5, 4)
    assert prepared(picture(9)).tolist() == prepared(zipped({"SMITH^J.png": picture(9)})).tolist()


def test_a_zip_of_a_series_is_the_series(tmp_path: Path) -> None:
    folder = series(tmp_path / "series", slices(letter_f(), canonical_affine()))
    files = {f"SMITH/{place}": path.read_bytes() for place, path in enumerate(sorted(folder.iterdir()))}
    assert len(files) == 4
    found = prepared(zipped(files | {"SMITH/report.txt": b"x", "DICOMDIR": b"x"}))
    np.testing.assert_array_equal(found, read_scan(folder).array)
    np.testing.assert_array_equal(found[0], letter_f())
    with pytest.raises(DataError) as caught:
        prepared(zipped(files | {"SMITH/1": files["SMITH/1"][:-20]}))
    assert "SMITH" not in str(caught.value) and "/tmp" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zipped({"a.png": bytes(300_000)}), "this server takes"),
        (zipped({f"{n}.png": b"x" for n in range(7)}), "holds 7 files"),
        (zipped({"../SMITH.png": picture(9)}), "not sound"),
        (zipped({"/SMITH.png": picture(9)}), "not sound"),
        (zipped({"a\\..\\SMITH.png": picture(9)}), "not sound"),
        (zipped({link(): b"/etc/passwd"}), "a link"),
        (zipped({"SMITH.txt": b"x", "DICOMDIR": b"x", ".hidden": b"x"}), "no file that could be a scan"),
        (zipped({"SMITH.zip": zipped({"a.png": picture(9)})}), "is an archive"),
        (zipped({"a.png": picture(9)})[:-30], "damaged"),
        (zipped({"a.nii": gzip.compress(bytes(300_000))}), "unpacks to more than"),
        (gzip.compress(bytes(300_000)), "unpacks to more than"),
        (gzip.compress(volume(4, 5, 6))[:-20], "breaks off"),
        (b"\x1f\x8b\x08SMITH", "gzip"),
        (picture(400), "claims more than"),
        (volume(4, 5, 6)[:420], "truncated or damaged"),
        (b"SMITH", "not a format that is read"),
    ],
)
def test_what_is_not_sound_is_refused_without_a_name(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        prepared(data)
    text = str(caught.value)
    assert "SMITH" not in text and "/tmp" not in text and "medopt-" not in text


def test_a_member_larger_than_it_says_is_not_unpacked() -> None:
    honest = zipped({"a.png": bytes(150_000)})
    lying = honest.replace(struct.pack("<I", 150_000), struct.pack("<I", 10))
    with pytest.raises(DataError, match=r"damaged|more than it says"):
        prepared(lying)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def sums(images: FloatArray, facts: Sequence[Acquisition | None], cells: Sequence[object]) -> list[Answer]:
    assert len(facts) == len(cells) == len(images)
    if np.isnan(images).any():
        raise DataError("no number")
    return [Answer({}, "", (float(image.sum()),)) for image in images]


def test_batches_gather_what_is_on_its_way_and_keep_requests_apart() -> None:
    async def body() -> None:
        sizes: list[int] = []
        batcher = Batcher(sums, 4, 5.0, sizes.append)

        async def ask(count: int, value: float, come: Callable[[], None] | None = None) -> list[float]:
            if come:
                come()
            found = await batcher.ask(np.full((count, 1), value, np.float32), [None] * count)
            return [one.logits[0] for one in found]

        with batcher.expecting() as first, batcher.expecting() as second:
            early = asyncio.create_task(ask(1, 1, first))
            await asyncio.sleep(0.05)
            assert not early.done()  # it waits for the second
            late = await ask(2, 2, second)
            assert (await early, late, sizes) == ([1], [2, 2], [3])
        assert await ask(9, 3) == [3] * 9 and sizes[1:] == [4, 4, 1]  # at once: nobody else is on the way
        found = await asyncio.gather(ask(1, 1), ask(1, np.nan), ask(2, 2), return_exceptions=True)
        assert found[0] == [1] and isinstance(found[1], DataError) and found[2] == [2, 2]
        batcher.close()

    run(body)


def test_a_batch_does_not_wait_longer_than_it_may() -> None:
    async def body() -> None:
        batcher = Batcher(sums, 4, 0.01)
        with batcher.expecting():  # and it never comes
            assert len(await batcher.ask(np.ones((1, 1), np.float32), [None])) == 1
        batcher.close()

    run(body)


def test_the_queue_counts_images_and_bytes() -> None:
    counted = Admission(SMALL)
    counted.take(3, 10)
    for images, kind in ((2, "busy"), (5, "size")):
        with pytest.raises(Refused) as caught:
            counted.take(images)
        assert caught.value.kind == kind
    with pytest.raises(Refused, match="memory for requests is full"):
        counted.take(1, SMALL.max_bytes)
    counted.give(3, 10)
    counted.take(4)


def test_tensors_come_back_as_they_went() -> None:
    files = np.array([b"ab", b"\xff\x00c"], object)
    assert from_raw("scan", [2], to_raw(files)) == (b"ab", b"\xff\x00c")
    reply = InferenceResponse(
        "m", "v", {"logits": np.array([[np.nan, 0.1]]), "decision": np.array([b"yes"], object)}, {}
    )
    for broken in (b"\x05\0\0\0ab", b"\x02\0\0", b"\x00\0\0\0\x01\0\0\0a", to_raw(files)[:-1]):
        with pytest.raises(Refused, match="as many files"):
            from_raw("scan", [2], broken)
    data, length = write_response(reply, OutputSelection("7", {"logits": True, "decision": False}))
    assert length is not None and np.frombuffer(data[length:]).tolist()[1] == 0.1
    assert b'"data":["yes"]' in data[:length] and b'"id":"7"' in data[:length]
    whole, none = write_response(reply, OutputSelection("", {"logits": False}))
    assert none is None and b'"data":[null,0.1]' in whole
    assert parse_request(b"any file", "0")[0].scans == (b"any file",)
    with pytest.raises(Refused, match="empty"):
        parse_request(b"", "0")


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not Key.read(None)
    Key.read(None).check({})
    monkeypatch.setenv(VARIABLE, "k" * 16)
    Key.read(None).check({"authorization": "bearer " + "k" * 16})
    file = tmp_path / "key"
    with pytest.raises(ConfigError, match="cannot be read"):
        Key.read(file)
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="openssl rand"):
        Key.read(file)
    with pytest.raises(Refused, match="absent or wrong"):
        Key.read(None).check({"x-api-key": "k" * 15})
    file.write_text("k" * 16 + "\na remark on the second line\n")
    Key.read(file).check({"x-api-key": "k" * 16})
    file.write_bytes(b"\xef\xbb\xbf" + b"k" * 16 + b"\r\n")  # as some editors begin a file
    Key.read(file).check({"x-api-key": "k" * 16})
    file.write_text("\n" + "k" * 16 + "\n")  # a blank first line turns no key off
    Key.read(file).check({"x-api-key": "k" * 16})
    monkeypatch.setenv(VARIABLE, " \n" + "k" * 16)
    with pytest.raises(Refused):
        Key.read(None).check({})
    for odd in ("schlüssel-mit-umlaut", "two words of sixteen"):
        file.write_text(odd)
        with pytest.raises(ConfigError, match="ASCII") as refused:
            Key.read(file)
        assert odd not in str(refused.value)

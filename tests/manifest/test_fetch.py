from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator

import pytest
from file_server import FileServer

from medopt.core.errors import DataError, StorageError
from medopt.core.reporter import SilentReporter
from medopt.manifest.card import Card
from medopt.manifest.fetch import fetch_files

BODY = bytes(range(256)) * 3000


def packed(kind: str, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.mkdir("folder")
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def server() -> Iterator[FileServer]:
    running = FileServer()
    running.files = {"/good": BODY, "/cut": BODY, "/flaky": BODY}
    yield running
    running.close()


def a_card(url: str, body: bytes = BODY, path: str = "set/a.bin", kind: str = "sha256", **more: object) -> Card:
    checksum = f"{kind}:{hashlib.new(kind, body).hexdigest()}"
    return Card(
        title="Some images",
        source="s",
        licence="CC0",
        citation="c",
        labels={},
        manifest_sha256="0" * 64,
        files=[{"url": url, "path": path, "checksum": checksum, **more}],
    )


class Told(SilentReporter):
    """Keeps what a person would see."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.bars: list[tuple[int, list[int]]] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, total: int, what: str) -> Callable[..., None]:
        steps: list[int] = []
        self.bars.append((total, steps))
        return lambda n=1, **fields: steps.append(n)


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_file_is_downloaded_once_and_its_bar_is_filled(tmp_path, server, kind):
    card, told = a_card(f"{server.address}/good", kind=kind), Told()
    target = tmp_path / "set" / "a.bin"
    assert fetch_files(card, tmp_path, told) == [target]
    assert target.read_bytes() == BODY
    ((total, steps),) = told.bars
    assert total == sum(steps) == len(BODY)
    assert len([step for step in steps if step]) > 1
    assert fetch_files(card, tmp_path, told) == [target]
    assert server.asked["/good"] == 1
    assert "CC0" in told.texts[-1]


def test_a_failure_that_passes_is_tried_again(tmp_path, server):
    told = Told()
    fetch_files(a_card(f"{server.address}/flaky"), tmp_path, told, retries=1)
    assert server.asked["/flaky"] == 2
    assert (tmp_path / "set" / "a.bin").read_bytes() == BODY


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("/absent", "the server answered 404"),
        ("/other", "does not have the published checksum"),
        ("/cut", "broke off"),
        (None, "could not be reached"),
    ],
)
def test_a_failed_download_names_the_way_out_and_leaves_nothing(tmp_path, server, page, expected):
    server.files["/other"] = b"<html>Please log in</html>"
    url = f"{server.address}{page}" if page else f"http://127.0.0.1:{closed_port()}/good"
    with pytest.raises(DataError) as caught:
        fetch_files(a_card(url), tmp_path, retries=0)
    text = str(caught.value)
    assert expected in text
    assert url in text
    assert f"place it as {tmp_path / 'set' / 'a.bin'}" in text
    assert hashlib.sha256(BODY).hexdigest() in text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_file_in_the_place_is_not_overwritten(tmp_path, server):
    target = tmp_path / "set" / "a.bin"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match="not overwritten: move it away"):
        fetch_files(a_card(f"{server.address}/good"), tmp_path)
    assert target.read_bytes() == b"mine"
    assert server.asked == {}


def test_a_card_without_files_says_what_to_do(tmp_path):
    card = a_card("http://x/y").model_copy(update={"files": [], "get": "Write to the authors."})
    with pytest.raises(DataError, match="Write to the authors"):
        fetch_files(card, tmp_path)


def test_no_place_to_write(tmp_path, server, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", full)
    with pytest.raises(StorageError, match="disk is full"):
        fetch_files(a_card(f"{server.address}/good"), tmp_path, retries=0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_placed_by_folder_without_what_macos_adds(tmp_path, server, kind):
    members = {
        "./Task/imagesTr/1.nii": b"one",
        "./Task/imagesTr/._1.nii": b"fork",
        "__MACOSX/Task/imagesTr/2.nii": b"fork",
        "Task/labelsTr/1.nii": b"label",
        "Task/imagesTs/9.nii": b"unlabelled",
        "Task/imagesTr2/9.nii": b"another folder",
    }
    body = server.files["/archive"] = packed(kind, members)
    move = {"Task/imagesTr": "set/images", "Task/labelsTr": "set/labels"}
    card = a_card(f"{server.address}/archive", body, "set/archive", unpack=kind, move=move)
    expected = [tmp_path / "set/images/1.nii", tmp_path / "set/labels/1.nii"]
    assert fetch_files(card, tmp_path) == expected
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [tmp_path / "set/archive", *expected]
    )
    assert expected[0].read_bytes() == b"one"
    expected[0].unlink()
    assert fetch_files(card, tmp_path) == expected
    assert server.asked["/archive"] == 1
    expected[1].write_bytes(b"changed by hand")
    with pytest.raises(DataError, match="already with other content"):
        fetch_files(card, tmp_path)
    assert expected[1].read_bytes() == b"changed by hand"


def test_an_archive_without_a_map_is_unpacked_beside_itself(tmp_path, server):
    body = server.files["/archive"] = packed("zip", {"images/1.png": b"one"})
    card = a_card(f"{server.address}/archive", body, "set/a.zip", unpack="zip")
    assert fetch_files(card, tmp_path) == [tmp_path / "set/images/1.png"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../../escaped", "a/../../../escaped", "/tmp/escaped", "..\\escaped"])
def test_a_member_that_leads_elsewhere_is_refused(tmp_path, server, kind, name):
    body = server.files["/archive"] = packed(kind, {name: b"x"})
    data = tmp_path / "deep" / "data"
    with pytest.raises(DataError, match="is refused"):
        fetch_files(a_card(f"{server.address}/archive", body, "set/a", unpack=kind), data)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [data / "set/a"]


def test_a_link_in_an_archive_is_refused(tmp_path, server):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("images")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    body = server.files["/archive"] = stream.getvalue()
    with pytest.raises(DataError, match="is a link"):
        fetch_files(a_card(f"{server.address}/archive", body, "set/a", unpack="tar"), tmp_path)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_not_an_archive_is_refused(tmp_path, server, kind):
    with pytest.raises(DataError, match=f"cannot be unpacked as {kind}"):
        fetch_files(a_card(f"{server.address}/good", unpack=kind), tmp_path)


def test_an_archive_without_the_wanted_folder_is_refused(tmp_path, server):
    body = server.files["/archive"] = packed("tar", {"other/1.nii": b"x"})
    with pytest.raises(DataError, match="none of the folders Task"):
        fetch_files(a_card(f"{server.address}/archive", body, "a", unpack="tar", move={"Task": "set"}), tmp_path)

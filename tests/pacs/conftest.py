from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clinic_fixtures import Finished
from closing import closing_all
from http_node import HttpNode
from node_process import NodeProcess
from peers import Archive


@pytest.fixture(scope="session")
def release(finished: Finished) -> Path:
    """The clinic's release, which a test must not change."""
    return finished.release


@pytest.fixture
def archive() -> Iterator[Archive]:
    pacs = Archive()
    pacs.start()
    yield pacs
    pacs.stop()


@pytest.fixture
def start_node_process(tmp_path: Path, release: Path, archive: Archive) -> Iterator[Callable[..., NodeProcess]]:
    def create(**changes: Any) -> NodeProcess:
        node = NodeProcess(tmp_path, release, archive, **changes)
        node.start()
        return node

    yield from closing_all(create)


@pytest.fixture
def start_http_node(tmp_path: Path) -> Iterator[Callable[..., HttpNode]]:
    yield from closing_all(partial(HttpNode, tmp_path))

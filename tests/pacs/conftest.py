from __future__ import annotations

from pathlib import Path

import pytest
from clinic_fixtures import Finished


@pytest.fixture(scope="session")
def release(finished: Finished) -> Path:
    """The clinic's release; not to be changed."""
    return finished.release

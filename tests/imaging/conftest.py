from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MEDOPT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (folder / "dicom").is_dir():
        pytest.skip(f"the real scans are not at {folder}; set MEDOPT_DATA")
    return folder

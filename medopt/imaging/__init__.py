"""From a file or a DICOM series to a Volume: one entry point, `read_scan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medopt.imaging.scan import read_scan

__all__ = ["read_scan"]


def __getattr__(name: str) -> Any:
    """Import `read_scan` on first use: pydicom and nibabel take a second, and paths are checked without them."""
    if name != "read_scan":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from medopt.imaging import scan

    return scan.read_scan

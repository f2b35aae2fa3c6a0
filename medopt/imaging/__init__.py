"""File or DICOM series to Volume: one door, `read_scan`."""

from medopt.imaging.scan import read_scan

__all__ = ["read_scan"]

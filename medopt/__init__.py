"""medopt: from a study's scans to a probability back in the PACS, every step measured."""

__version__ = "0.1.0"

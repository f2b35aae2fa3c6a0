"""medopt: from a study's scans to a probability back in the PACS, every step measured."""

import sys

__version__ = "0.1.0"

# Imported, OpenVINO and NNCF send what they are used for to a web service, unasked; without this module they cannot.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python bars a module

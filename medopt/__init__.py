"""medopt: from a study's scans to a probability back in the PACS, every step measured."""

import os
import sys

__version__ = "0.1.0"

# OpenVINO and NNCF (by this module) and MLflow tell a web service what they are used for, unasked. Not from here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python bars a module

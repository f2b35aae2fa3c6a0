"""MLflow's credentials go to another machine encrypted, or not at all."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from mlflow.utils.credentials import read_mlflow_creds

from medopt.core.clear_text import is_in_clear
from medopt.core.errors import ConfigError


def require_encrypted(uri: str) -> None:
    """Raise ConfigError where MLflow would send a password or token to another machine in clear."""
    if not is_in_clear(uri):
        return
    place = urlsplit(uri).netloc
    known = read_mlflow_creds()
    sources = {
        "the address": "@" in place,
        "MLFLOW_TRACKING_PASSWORD or ~/.mlflow/credentials": bool(known.username or known.password),
        "MLFLOW_TRACKING_TOKEN": bool(os.environ.get("MLFLOW_TRACKING_TOKEN")),
    }
    if given := [name for name, there in sources.items() if there]:
        raise ConfigError(
            f"The credentials of {' and '.join(given)} would be sent to MLflow at {place.rpartition('@')[2]} in clear: "
            "name the server by https://, or take them away. With credentials plain http:// is for this machine alone "
            "(127.0.0.1, localhost)."
        )

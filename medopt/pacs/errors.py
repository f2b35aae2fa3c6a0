"""The one exception of those who ask another system."""

from __future__ import annotations

from medopt.core.errors import MedoptError


class PeerError(MedoptError):
    """Another system did not answer as it should; the text names no patient."""

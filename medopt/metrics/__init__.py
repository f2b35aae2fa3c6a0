"""Metrics with their intervals: numpy and scipy only, usable without a study.

`medopt.metrics.evaluate(labels, logits, patients=ids)` gives all figures of a model's logits, from arrays alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medopt.metrics.estimates import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> object:
    if name == "evaluate":  # scipy waits until it is asked for
        from medopt.metrics.estimates import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

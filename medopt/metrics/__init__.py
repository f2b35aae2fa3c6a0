"""Metrics with their intervals: numpy and scipy only, usable without a study.

`medopt.metrics.evaluate(labels, logits, patients=ids)` gives all figures of a model's logits, from arrays alone.

>>> import medopt
>>> figures = medopt.metrics.evaluate([0, 0, 1, 0, 1, 1], [-2.0, -1.0, -0.5, 0.2, 1.5, 3.0], patients=list("aabcde"))
>>> round(figures.auc.value, 3), figures.auc.n
(0.889, 6)
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

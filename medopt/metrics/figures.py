"""The figures of one model on one set of cases: their names, and the record that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from medopt.core.records import Estimate

RATES = ("auc", "sensitivity", "specificity")
"""What is told of every subgroup."""
HEADLINE = ("auc", "average_precision", "accuracy", "sensitivity", "specificity")
"""What a short table tells."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a model on one set of cases, each with its interval.

    `auc` has DeLong's interval, the one that is shown, and `auc_bootstrap` the bootstrap's. `ppv` and `npv` hold at the
    prevalence of the cases, or at the one that was asked for. `ece` and `ace` are calibration errors over bins of equal
    width and of equal count. Means over classes or labels where there are several.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    auc: Estimate
    auc_bootstrap: Estimate
    average_precision: Estimate
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    f1: Estimate
    brier: Estimate
    ece: Estimate
    ace: Estimate

    def __getitem__(self, name: str) -> Estimate:
        """A figure by its name; raises KeyError for a name that is not in METRICS."""
        if name not in METRICS:
            raise KeyError(name)
        estimate: Estimate = getattr(self, name)
        return estimate

    def by_name(self) -> Mapping[str, Estimate]:
        """All of them, in their order."""
        return {name: self[name] for name in METRICS}


METRICS = tuple(field.name for field in fields(Figures))
REPORTED = tuple(name for name in METRICS if name != "auc_bootstrap")
"""What pages and tables show: one interval a figure. The bootstrap's of the AUC is in the JSON files alone."""

"""What is kept of sites and subgroups; `subgroups` computes it."""

from __future__ import annotations

from collections.abc import Iterator

from medopt.core.records import Estimate
from medopt.core.result import Result


class GroupDifference(Result):
    """Figures of a group less those of all other cases."""

    auc: Estimate
    sensitivity: Estimate
    specificity: Estimate


class SubgroupFigures(Result):
    """One group of cases. A group that is too small, or lacks a class, has a note in the place of figures.

    `positives` are the cases with the finding, None where the study has several outputs. The intervals of `difference`
    hold together for all groups that are looked at; `uncorrected` is the same difference with the interval that it
    would have if no other had been looked at. Both are None where the other cases are too few to compare with.
    """

    cases: int
    patients: int
    positives: int | None = None
    auc: Estimate | None = None
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None
    difference: GroupDifference | None = None
    uncorrected: GroupDifference | None = None
    note: str = ""


class WorstGroup(Result):
    """The group of the lowest AUC, and by how much it lies below all other cases."""

    variable: str
    group: str
    auc: Estimate
    difference: Estimate | None


class SubgroupResults(Result):
    """Each variable's groups by name, and the worst of all `looks` groups; groups below `smallest_group` patients are
    not judged."""

    variables: dict[str, dict[str, SubgroupFigures]]
    smallest_group: int
    worst: WorstGroup | None
    looks: int
    note: str

    def groups(self) -> Iterator[tuple[str, str, SubgroupFigures]]:
        """Every group as (variable, its name, its figures)."""
        for variable, groups in self.variables.items():
            for name, group in groups.items():
                yield variable, name, group

"""The covariates' part of a model: a linear term that is added to the logits that the network makes of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from medopt.core.result import ByKind, Result

Floats = NDArray[np.float64]


class CovariateTerm(Result):
    """Coefficients (F, K): by how much each encoded column, one on its scale, moves each output."""

    names: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _row_for_each_name(self) -> Self:
        if len(self.names) != len(self.weights) or len({len(row) for row in self.weights}) > 1:
            raise ValueError("the coefficients need a row for each name, all of one length")
        return self

    @classmethod
    def of(cls, names: Sequence[str], weights: Floats) -> Self:
        """From coefficients (F, K)."""
        rows = np.asarray(weights, np.float64).tolist()
        return cls(names=tuple(names), weights=tuple(tuple(row) for row in rows))

    def logits(self, rows: Floats) -> Floats:
        """What encoded covariates (N, F) add to the logits (N, K)."""
        return np.asarray(np.asarray(rows, np.float64) @ np.array(self.weights, np.float64))


class CovariateTerms(ByKind[CovariateTerm]):
    """`covariates.json` beside a run's models: the term of each."""

    @classmethod
    def mean(cls, members: Sequence[CovariateTerms]) -> CovariateTerms:
        """That of an ensemble that averages its members' logits."""
        return cls(float=_mean([one.float for one in members]), int8=_mean([one.int8 for one in members]))


def _mean(terms: Sequence[CovariateTerm]) -> CovariateTerm:
    return CovariateTerm.of(terms[0].names, np.mean([term.weights for term in terms], axis=0))

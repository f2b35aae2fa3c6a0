"""What the covariates add to the logits of a run's two models: kept beside their ONNX files, which see images alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.covariates import CovariateTerm, CovariateTerms
from medopt.core.records import Case
from medopt.manifest.covariates import encoder_of
from medopt.training.covariates import term_of

TERMS = "covariates.json"  # below models/


def write_terms(study: Study, weights: Sequence[Path], models: Path) -> None:
    """Keep the terms of the networks whose weights these are: of the whole one, and last of that which int8 is made of.

    Nothing is written for a study without covariates.
    """
    whole, last = (term_of(study, path) for path in (weights[0], weights[-1]))
    if whole is not None and last is not None:
        CovariateTerms(float=whole, int8=last).write(models / TERMS)


def read_terms(study: Study, models: Path) -> CovariateTerms | None:
    """The terms beside a run's models; None where the study has no covariates. Raises DataError."""
    return CovariateTerms.read(models / TERMS) if study.data.covariates else None


def covariate_logits(study: Study, term: CovariateTerm | None, cases: Sequence[Case]) -> NDArray[np.float64] | float:
    """What the covariates of cases add to their logits (N, K); 0 where the study has none."""
    encoder = encoder_of(study)
    if encoder is None:
        return 0.0
    if term is None:
        raise ValueError("the study has covariates, and their coefficients are not given")
    return term.logits(encoder.table(cases))

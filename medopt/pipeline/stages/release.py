"""What service will be held against: the validation split as the release itself answers it."""

from __future__ import annotations

from medopt.core.records import batches
from medopt.data.cache import load_facts
from medopt.inference.engines import load_batch
from medopt.release.drift_reference import Reference
from medopt.release.predictor import Predictor
from medopt.serving.prediction_table import Row, observed
from medopt.training.job import PreparedSplit

AT_ONCE = 16


def reference_of(predictor: Predictor, held: PreparedSplit) -> Reference:
    """The aggregates of a release's answers on prepared images."""
    rows: list[Row] = []
    for part in batches(len(held.files), AT_ONCE):
        facts = [load_facts(file) for file in held.files[part]]
        found = predictor.predict(load_batch(held.files[part]), facts)
        rows += [Row("", answer, facts=fact) for answer, fact in zip(found, facts, strict=True)]
    return Reference.of(len(rows), observed(rows, predictor.info.labels))

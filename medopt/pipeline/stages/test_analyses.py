"""What else is measured of the test split once it has been scored: robustness, explanation, and the domain gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.records import Predictions
from medopt.core.reporter import Reporter
from medopt.evaluation.predictions_io import read_predictions
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stages.compress import explain, ood_check, robustness
from medopt.pipeline.stages.judge import GateResult
from medopt.training.job import PreparedSplit


@dataclass(frozen=True, slots=True)
class TestAnalysis:
    """A stage of its own, whose first output is a JSON of what it found."""

    name: str
    outputs: Sequence[Path]
    work: Callable[[], dict[str, Any]]


def inspections(
    study: Study,
    sets: Mapping[Any, PreparedSplit],
    root: Path,
    weights: Sequence[Path],
    judged: GateResult,
    folder: RunFolder,
    reporter: Reporter,
) -> Iterator[TestAnalysis]:
    """Those that the study asks for, in their order. `root` is where the scans lie, `weights` the network's."""
    path = folder.path

    def test_tables() -> dict[str, Predictions]:
        return {table.model: table.of_split("test") for table in read_predictions(path / "predictions.csv")}

    def explained() -> dict[str, Any]:
        scored = CalibratedPredictions(
            test_tables()["float"], study.data.task, judged.calibrations["float"], judged.points["float"]
        )
        return explain.explain_cases(study, sets, root, weights, scored, folder)

    if study.evaluation.shift_cases:
        outputs = [path / robustness.RESULT, path / robustness.TABLE, path / "figures" / robustness.PICTURE]
        yield TestAnalysis(
            "robustness",
            outputs,
            lambda: robustness.check_robustness(study, sets["test"], test_tables(), folder, judged, reporter),
        )
    if study.evaluation.explain:
        yield TestAnalysis("explain", [path / explain.RESULT, path / "figures" / explain.FOLDER], explained)
    if study.domain.enabled:
        outputs = [path / ood_check.RESULT, folder.models / ood_check.RESULT]
        yield TestAnalysis("domain", outputs, lambda: ood_check.gate_domain(study, sets, folder, judged, reporter))

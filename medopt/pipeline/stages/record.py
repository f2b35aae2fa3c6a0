"""The stage `record`: figures, tables and the release in MLflow, where a reviewer looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medopt.core.provenance import digest
from medopt.core.records import KINDS
from medopt.evaluation.run_metrics import METRICS_FILE, RunMetrics
from medopt.pipeline.mlflow_summary import final_tags, logged_figures, unknown_labels
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages import robustness
from medopt.pipeline.stages.evaluate import PREDICTIONS
from medopt.report import REPORT
from medopt.report.run_records import read_run


@dataclass(frozen=True, slots=True)
class Recorded:
    """The version under which the release was registered; None where there is no release."""

    registered_version: str | None


class RecordStage(Stage[Recorded]):
    """Log the run's end; the release gets the alias `candidate` only if both verdicts passed it."""

    name = "record"
    inputs = ("prepare", "judge", "evaluate")
    result_type = Recorded

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """All figures, and the run that they are logged to."""
        return {"metrics": digest(RunMetrics.read(context.folder.path).json_values()), "run": context.tracker.origin}

    def run(self, context: RunContext) -> Recorded:
        """Raises ConfigError where the store does not answer; the same command tries again."""
        folder, tracker, path = context.folder, context.tracker, context.folder.path
        metrics = RunMetrics.read(path)
        records = read_run(path)
        tracker.log_figures(logged_figures(metrics) | unknown_labels(records))
        tracker.log_tags(final_tags(records))
        tracker.log_files({"": path / REPORT, "figures": folder.figures})
        for name in (METRICS_FILE, "study.yaml"):
            tracker.log_files({"": path / name})
        for name in (PREDICTIONS, *((robustness.TABLE,) if metrics.robustness else ())):
            tracker.log_files({"tables": path / name})
        for kind in KINDS:
            tracker.log_files({"models": folder.models / f"{kind}.onnx"})
        if not folder.release.exists():
            return Recorded(None)
        tracker.log_files({"release": folder.release})
        return Recorded(tracker.log_release(folder.release))

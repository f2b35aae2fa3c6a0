"""The stage `report`: one HTML file of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medopt.core.provenance import digest
from medopt.evaluation.run_metrics import RunMetrics
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.report import REPORT, write_report


class ReportStage(Stage[NoResult]):
    """Write report.html from the records in the run folder."""

    name = "report"
    inputs = ("prepare", "judge", "evaluate")

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """All figures."""
        return {"metrics": digest(RunMetrics.read(context.folder.path).json_values())}

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The page."""
        return [folder.path / REPORT]

    def run(self, context: RunContext) -> NoResult:
        """Write the page."""
        write_report(context.folder.path)
        return NoResult()

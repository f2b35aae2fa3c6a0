"""The pages that a reviewer reads: one self-contained HTML file each, drawn from a run's own records."""

from medopt.report.run_report import REPORT, write_report

__all__ = ["REPORT", "write_report"]

"""The pages that a reviewer reads: one self-contained HTML file each, drawn from a run's own records."""

from medopt.report.run_records import newest_run
from medopt.report.run_report import REPORT, write_report

__all__ = ["REPORT", "newest_run", "write_report"]

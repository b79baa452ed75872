"""report: verdicts as one self-contained HTML page that an auditor can read, print and sign."""

from intaglio.report.reading import check_verdict, read_verdicts
from intaglio.report.report import render_report, write_report

__all__ = ["check_verdict", "read_verdicts", "render_report", "write_report"]

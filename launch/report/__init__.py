"""`report.html` of a run: one file that needs nothing else, and its charts as PNGs. Made again, it is refreshed."""

from launch.report.page import try_report, write_report

__all__ = ["try_report", "write_report"]

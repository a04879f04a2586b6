"""What a run's folder says: one self-contained HTML page, and a few tables for the terminal."""

from pylm.report.page import write_report
from pylm.report.terminal import print_summary

__all__ = ["print_summary", "write_report"]

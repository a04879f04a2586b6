"""One self-contained HTML page about a run: what went in, what came out, how sure that is."""

from pylm.report.page import write_report

__all__ = ["write_report"]

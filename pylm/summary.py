"""What a finished run says on the terminal: a table of its figures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pylm.files import read_json

STAGES = ("pretrain", "sft", "dpo", "rlvr")


def print_summary(run: Path, report: Path) -> None:
    """Print funnel, bits per byte, figures of each stage, timings and the report's path.

    Args:
        run: folder of a finished run.
        report: the page that was written.
    """
    console = Console(width=None if Console().is_terminal else 100)
    for table in summary_tables(run):
        console.print(table)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


def summary_tables(run: Path) -> Iterator[Table]:
    """Make the tables of `print_summary` from the files in a run's folder; missing stages are left out."""
    yield from _funnel(run)
    yield from _evaluations(run)
    yield _timings(run)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
    return table


def _funnel(run: Path) -> Iterator[Table]:
    path = run / "prepare" / "funnel.json"
    if not path.exists():
        return
    table = _table("Documents", "step", "documents", "megabytes")
    for step in read_json(path)["steps"]:
        table.add_row(step["name"], f"{step['documents']:,}", f"{step['bytes'] / 1e6:.2f}")
    yield table


def _evaluations(run: Path) -> Iterator[Table]:
    results = {x: read_json(run / "eval" / f"{x}.json") for x in STAGES if (run / "eval" / f"{x}.json").exists()}
    if not results:
        return
    table = _table("Held out, by stage (95 % intervals)", "", *results)
    rows = {
        "bits per byte": "bits_per_byte",
        "answers in the asked format": "format",
        "right answers": "exact_match",
        "right arithmetic": "arithmetic",
        "right preference": "preference",
    }
    for title, key in rows.items():
        cells = [_estimate(results[name].get(key)) for name in results]
        if any(cells):
            table.add_row(title, *cells)
    yield table


def _estimate(value: Mapping[str, Any] | None) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else ""


def _timings(run: Path) -> Table:
    table = _table("Time", "stage", "seconds")
    for path in sorted(run.glob("*/stage.json"), key=lambda x: x.stat().st_mtime):
        stage = read_json(path)
        if stage["status"] == "complete":
            table.add_row(stage["stage"], f"{stage['elapsed_s']:.1f}")
    return table

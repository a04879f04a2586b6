"""The figures of a run for the terminal: what `pylm run` prints at its end."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pylm.eval.compare import Estimate
from pylm.report.figures import (
    ARITHMETIC,
    METRICS,
    arithmetic_baseline,
    change_of,
    estimate_of,
    evaluated_stages,
)
from pylm.report.funnel import read_funnel
from pylm.report.html import format_duration
from pylm.report.run_folder import TITLES, RunFolder, child, column, number, read_run

_WIDTH = 110  # of what is not a terminal


def print_summary(folder: Path, report: Path) -> None:
    """Print funnel, evaluation by stage, what each stage changed, timings and the report's path.

    Args:
        folder: of a run; what is missing in it is left out.
        report: the page that was written.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    run = read_run(folder)
    for table in summary_tables(run):
        if table.row_count:
            console.print(table)
    for line in summary_lines(run):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False, markup=False)


def summary_tables(run: RunFolder) -> Iterator[Table]:
    """Make the tables: documents by step, figures by stage, seconds by stage."""
    funnel = _table("Documents", "step", "removed", "left", "megabytes")
    for place, step in enumerate(read_funnel(run.funnel)):
        size = "" if step.bytes_out is None else f"{step.bytes_out / 1e6:.2f}"
        removed = f"{step.num_in - step.num_out:,}" if place else ""
        funnel.add_row(step.name, removed, f"{step.num_out:,}", size)
    yield funnel
    stages = evaluated_stages(run)
    figures = _table("Held out, by stage (95 % intervals)", "", *(TITLES[stage] for stage in stages))
    for metric in METRICS:
        estimates = [estimate_of(run, stage, metric) for stage in stages]
        if any(estimates):
            figures.add_row(metric.name.lower(), *map(_estimate_text, estimates))
    yield figures
    times = _table("Time", "stage", "")
    for stage, record in run.stages.items():
        seconds = number(record.get("elapsed_s"))
        if seconds is not None:
            times.add_row(stage, format_duration(seconds))
    yield times


def summary_lines(run: RunFolder) -> Iterator[str]:
    """Say what compressors reach on the same text, and what each stage changed."""
    compression = child(run.evaluations.get("pretrain", {}), "compression")
    if compression:
        sizes = {name: number(compression.get(name)) or 0.0 for name in ("xz", "zstd", "gzip")}
        yield (
            f"compressors, bits per byte of the same text: xz -9 over all files {sizes['xz']:.3f}, "
            f"file by file zstd -19 {sizes['zstd']:.3f}, gzip -9 {sizes['gzip']:.3f}"
        )
    _, accuracies = column(run.metrics.get("dpo", ()), "heldout/rewards/accuracies")
    if accuracies:
        yield f"DPO: reward accuracy on held-out pairs {accuracies[0]:.3f} -> {accuracies[-1]:.3f}"
    before = arithmetic_baseline(run, "rlvr")
    change = change_of(run, before, "rlvr", ARITHMETIC) if before else None
    if change:
        low, high = 100 * change.low, 100 * change.high
        yield (
            f"RLVR: held-out arithmetic {100 * change.value:+.1f} points over {TITLES[before or '']}, "
            f"95 % interval [{low:+.1f}, {high:+.1f}]"
        )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="", box=None, pad_edge=False
    )
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def _estimate_text(estimate: Estimate | None) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate else ""

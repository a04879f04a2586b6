"""Deduplication of a corpus in files, larger than memory: from inputs to survivors and a report."""

from collections.abc import Sequence
from typing import Any

from pylm.data import exact_dedup, near_dedup
from pylm.data.dedup_run import Progress, Run, run_dedup
from pylm.data.exact_dedup import ExactDedupConfig, find_exact
from pylm.data.executors import Executor
from pylm.data.funnel import Tally
from pylm.data.near_dedup import NUM_BINS, NearDedupConfig, find_near
from pylm.data.survivors import STEPS, remove_documents


def dedup_near(
    inputs: Sequence[str],
    out: str,
    config: NearDedupConfig,
    *,
    execute: Executor | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    keep_work: bool = False,
) -> dict[str, Any]:
    """Remove near-duplicates from a corpus in files, as `dedup.near` would from all of its texts at once.

    A call that was cut off goes on where it was; a complete result is not made again. The files do not depend
    on who executes the stages, nor on `num_partitions` and `verify_bytes`.

    Args:
        inputs: files, folders or globs of Parquet and JSON lines (.jsonl, .gz, .zst), local or URLs. Copies
            are preferred in this order.
        out: folder for the result: empty, or with a result of this function.
        config: the recipe.
        execute: does the work of a stage's items; None for the cores of this machine.
        progress: called with a stage, finished and all of its items.
        dry_run: find duplicates and report, but write no survivors.
        keep_work: keep the files of the stages, so that a call with more inputs signs only those.

    Returns:
        What report.json says.

    Raises:
        InputError: an input cannot be used, `out` holds something else or is in use, a file of a stage is
            damaged.
        OSError: the disk is full, or `out` cannot be written.
    """

    def work(run: Run, tally: Tally) -> tuple[Sequence[str], dict[str, Any]]:
        verdicts = find_near(run, config)
        found = near_dedup.count_found(run.folder)
        clusters, histogram = found.pop("largest"), found.pop("histogram")
        removed = remove_documents(run, tally, verdicts, clusters, dry_run=dry_run)
        bins = [
            {"from": i / NUM_BINS, "to": (i + 1) / NUM_BINS, "documents": count}
            for i, count in enumerate(histogram)
            if count
        ]
        return STEPS, {**removed, "similarities": bins, "compared": found}

    return run_dedup(
        "near",
        inputs,
        out,
        config,
        work,
        execute=execute,
        progress=progress,
        dry_run=dry_run,
        keep_work=keep_work,
    )


def dedup_exact(
    inputs: Sequence[str],
    out: str,
    config: ExactDedupConfig,
    *,
    execute: Executor | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    keep_work: bool = False,
) -> dict[str, Any]:
    """Remove equal documents, or those with equal addresses, from a corpus in files; otherwise as
    `dedup_near`.

    Hashes of 128 bits decide, as in `dedup.exact_batches`.
    """

    def work(run: Run, tally: Tally) -> tuple[Sequence[str], dict[str, Any]]:
        verdicts = find_exact(run, config)
        clusters = exact_dedup.count_found(run.folder, run.num_partitions)
        return STEPS[:1], remove_documents(run, tally, verdicts, clusters, dry_run=dry_run)

    return run_dedup(
        "exact",
        inputs,
        out,
        config,
        work,
        execute=execute,
        progress=progress,
        dry_run=dry_run,
        keep_work=keep_work,
    )

"""Repeated substrings of a corpus in files: in stages of bounded memory against one call in memory.

    python bench/substring_stages.py --text FILE [--megabytes 100 200] [--splits 8] [--json OUT]

`FILE` holds documents with NUL bytes between them; they are written as Parquet with a row group a split. Both
ways read the Parquet, find, cut and write Parquet, each call in processes of its own, and must find the same
spans before anything is timed. Peak memory is that of the largest process.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pylm.data.dedup import SubstringDedupConfig, dedup_substrings
from pylm.data.executors import LocalPool
from pylm.text import dedup

Spans = list[np.ndarray[Any, Any]]


def _in_memory(source: Path, out: Path, min_bytes: int, num_threads: int) -> None:
    table = pq.read_table(source)
    spans = dedup.substrings(table["text"], min_bytes=min_bytes, num_threads=num_threads)
    rest = spans.apply(table["text"], num_threads=num_threads)
    out.mkdir()
    pq.write_table(pa.table({"text": rest}), out / "documents.parquet", compression="zstd")
    spans.save(out / "spans.parquet")


def _in_stages(source: Path, out: Path, min_bytes: int, num_workers: int) -> None:
    config = SubstringDedupConfig(min_bytes=min_bytes, split_bytes=1)
    with LocalPool(num_workers) as pool:
        dedup_substrings([str(source)], str(out), config, execute=pool)


def _write_source(text: Path, source: Path, num_bytes: int, num_splits: int) -> None:
    texts = [x.decode("utf-8", "replace") for x in text.read_bytes()[:num_bytes].split(b"\0")]
    size = -(-len(texts) // num_splits)
    pq.write_table(pa.table({"text": texts}), source, row_group_size=size, compression="zstd")


def _measured(work: Callable[[], None], results: "multiprocessing.Queue[dict[str, float]]") -> None:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    usages = [resource.getrusage(x) for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(x.ru_utime + x.ru_stime for x in usages)
    results.put({"seconds": seconds, "cpu_s": cpu, "peak_mb": max(x.ru_maxrss for x in usages) / 1e3})


def _call(work: Callable[[], None], out: Path) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measured, args=(work, results))
    process.start()
    found: dict[str, float] = results.get()
    process.join()
    return found


def _spans_of(out: Path) -> Spans:
    if (out / "spans.parquet").exists():
        spans = dedup.Spans.load(out / "spans.parquet")
        return [spans.doc, spans.start, spans.end]
    tables = [pq.read_table(path) for path in sorted((out / "removed").iterdir())]
    table = pa.concat_tables(tables)
    return [table[name].to_numpy() for name in ("document", "start", "end")]


def _compare(args: argparse.Namespace, megabytes: float, folder: Path) -> dict[str, Any]:
    source, size = folder / f"{megabytes:g}.parquet", int(megabytes * 1e6)
    # In a process of its own, as all else: a child's peak memory is at least its parent's size.
    _call(partial(_write_source, args.text, source, size, args.splits), folder / "nothing")
    ways: dict[str, tuple[Callable[[], None], Path]] = {}
    for name, way, count in (
        ("in_memory", _in_memory, 1),
        ("in_memory_2", _in_memory, 2),
        ("stages", _in_stages, 1),
        ("stages_2", _in_stages, 2),
    ):
        out = folder / name
        ways[name] = (partial(way, source, out, args.min_bytes, count), out)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    expected: Spans | None = None
    for repeat in range(args.repeat + 1):  # round by round, so that all see the same state of the machine
        for name, (work, out) in ways.items():
            result = _call(work, out)
            if repeat == 0:  # compared, not timed
                spans = _spans_of(out)
                expected = expected or spans
                if not all(np.array_equal(x, y) for x, y in zip(spans, expected, strict=True)):
                    raise SystemExit(f"{name} gives other spans for {megabytes} MB")
            else:
                measured[name].append(result)
    assert expected is not None
    row: dict[str, Any] = {"megabytes": round(megabytes), "spans": len(expected[0])}
    for name, results in measured.items():
        for key, digits in (("seconds", 2), ("cpu_s", 2), ("peak_mb", 0)):
            row[f"{name}_{key}"] = round(statistics.median(x[key] for x in results), digits)
        row[f"{name}_mb_per_s"] = round(size / 1e6 / row[f"{name}_seconds"], 1)
    return row


def main() -> None:
    """Compare at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="documents with NUL bytes between them")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[100, 200], help="of the head of it")
    parser.add_argument("--min-bytes", type=int, default=100)
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    args = parser.parse_args()
    rows = []
    names = ("in_memory", "in_memory_2", "stages", "stages_2")
    print("| MB | spans |" + "".join(f" {name}: MB/s | CPU s | peak MB |" for name in names))
    print("|---" * (2 + 3 * len(names)) + "|")
    with tempfile.TemporaryDirectory(prefix="pylm-", dir=os.environ.get("TMPDIR")) as folder:
        for megabytes in args.megabytes:
            row = _compare(args, megabytes, Path(folder))
            rows.append(row)
            cells = [row["megabytes"], row["spans"]]
            cells += [row[f"{name}_{key}"] for name in names for key in ("mb_per_s", "cpu_s", "peak_mb")]
            print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

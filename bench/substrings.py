"""Repeated substrings by anchors against a suffix array with common prefixes: spans, time, peak memory.

    python bench/substrings.py --text FILE [--megabytes 30 100 200] [--libsais libsais.so] [--json OUT]

`FILE` holds documents with NUL bytes between them. Each call is a process of its own. The yardstick is what
any suffix-array method must do at least: `dedup.suffix_array` and `dedup.lcp_array` over the texts end to
end, without the step from there to spans; with `--libsais` also a build of that library (libsais,
libsais_plcp, libsais_lcp, one thread), whose arrays must be the same. Before anything is timed,
`method="suffix_array"` must give the same spans.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from pylm import dedup

SEPARATOR = b"\0"


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1e3


def _work(args: argparse.Namespace) -> None:
    """Run one way once, and print what came out and what it took."""
    content = args.text.read_bytes()[: int(args.megabytes[0] * 1e6)]
    column = pa.array(
        [text.decode("utf-8", "replace") for text in content.split(SEPARATOR)], pa.large_string()
    )
    del content
    data = np.frombuffer(column.buffers()[2], np.uint8)

    def spans(method: Any) -> Callable[[], dedup.Spans]:
        return lambda: dedup.substrings(
            column, min_bytes=args.min_bytes, keep=args.keep, method=method, num_threads=args.threads
        )

    def sort() -> None:
        order = dedup.suffix_array(data, num_threads=args.threads)
        dedup.lcp_array(data, order, num_threads=args.threads)

    def libsais() -> None:
        _libsais(args.libsais, data)

    run = {
        "sampled": spans("sampled"),
        "suffix_array": spans("suffix_array"),
        "sort": sort,
        "libsais": libsais,
    }[args.way]
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # or what reading has freed is taken again, and not counted
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak counts from here
    before, started, used = _peak_mb(), time.perf_counter(), time.process_time()
    found = run()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    result: dict[str, Any] = {
        "bytes": len(data),
        "seconds": seconds,
        "cpu_s": used,
        "extra_mb": _peak_mb() - before,
    }
    if found is not None:
        digest = xxhash.xxh3_128()
        for array in (found.doc, found.start, found.end):
            digest.update(array.tobytes())
        result |= {"digest": digest.hexdigest(), "spans": len(found), "share": found.size / len(data)}
    print(json.dumps(result), flush=True)


def _libsais(library: Path, data: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Suffix array and common prefixes by libsais."""
    peer = ctypes.CDLL(str(library.resolve()))
    size = len(data)
    order, permuted = np.empty(size, np.int32), np.empty(size, np.int32)
    at = [ctypes.c_void_p(x.ctypes.data) for x in (data, order, permuted)]
    if peer.libsais(at[0], at[1], size, 0, None) or peer.libsais_plcp(at[0], at[1], at[2], size):
        raise SystemExit("libsais failed")
    lcp = np.empty(size, np.int32)
    if peer.libsais_lcp(at[2], at[1], ctypes.c_void_p(lcp.ctypes.data), size):
        raise SystemExit("libsais failed")
    return order, lcp


def _check_libsais(args: argparse.Namespace) -> None:
    data = np.fromfile(args.text, np.uint8, count=5_000_000)
    order, lcp = _libsais(args.libsais, data)
    ours = dedup.suffix_array(data)
    if not np.array_equal(order, ours) or not np.array_equal(lcp[1:], dedup.lcp_array(data, ours)[1:]):
        raise SystemExit("libsais gives another order or other common prefixes")


def _call(args: argparse.Namespace, way: str, megabytes: float) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--way",
        way,
        "--text",
        str(args.text),
        "--megabytes",
        str(megabytes),
    ]
    command += ["--min-bytes", str(args.min_bytes), "--keep", args.keep, "--threads", str(args.threads)]
    command += ["--libsais", str(args.libsais)] if args.libsais else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _compare(args: argparse.Namespace, megabytes: float) -> dict[str, Any]:
    ours, other = _call(args, "sampled", megabytes), _call(args, "suffix_array", megabytes)
    if ours["digest"] != other["digest"]:
        raise SystemExit(f"the methods give different spans for {megabytes} MB")
    ways: dict[str, list[dict[str, Any]]] = {"sampled": [], "sort": []}
    if args.libsais:
        ways["libsais"] = []
    for _ in range(args.repeat):  # round by round, so that both see the same state of the machine
        for way, results in ways.items():
            results.append(_call(args, way, megabytes))
    medians = {
        way: {key: statistics.median(r[key] for r in results) for key in ("seconds", "cpu_s", "extra_mb")}
        for way, results in ways.items()
    }
    size = ours["bytes"] / 1e6
    return {
        "megabytes": round(size),
        "spans": ours["spans"],
        "share": round(ours["share"], 3),
        "mb_per_s": round(size / medians["sampled"]["seconds"], 1),
        "sort_mb_per_s": round(size / medians["sort"]["seconds"], 1),
        "ratio": round(medians["sort"]["seconds"] / medians["sampled"]["seconds"], 1),
        "cpu_ratio": round(medians["sort"]["cpu_s"] / medians["sampled"]["cpu_s"], 1),
        "memory": round(medians["sampled"]["extra_mb"] / size, 2),
        "sort_memory": round(medians["sort"]["extra_mb"] / size, 2),
    } | (
        {
            "libsais_mb_per_s": round(size / medians["libsais"]["seconds"], 1),
            "libsais_ratio": round(medians["libsais"]["seconds"] / medians["sampled"]["seconds"], 1),
            "libsais_cpu_ratio": round(medians["libsais"]["cpu_s"] / medians["sampled"]["cpu_s"], 1),
            "libsais_memory": round(medians["libsais"]["extra_mb"] / size, 2),
        }
        if args.libsais
        else {}
    )


def main() -> None:
    """Compare, or be one of the compared processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="documents with NUL bytes between them")
    parser.add_argument(
        "--megabytes", type=float, nargs="+", default=[30, 100, 200], help="of the head of it"
    )
    parser.add_argument("--min-bytes", type=int, default=100)
    parser.add_argument("--keep", default="first")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--libsais", type=Path, help="shared library of libsais to compare with")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        _work(args)
        return
    rows = []
    head = "| MB | spans | share | MB/s | sort, MB/s | times as fast | by CPU time | memory / text | sort's |"
    if args.libsais:
        _check_libsais(args)
        head += " libsais, MB/s | times as fast | by CPU time | its memory / text |"
    print(head)
    print("|---" * (head.count("|") - 1) + "|")
    for megabytes in args.megabytes:
        rows.append(_compare(args, megabytes))
        print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Indexes of texts that were seen before: what adding and looking up cost, and how that grows.

    python bench/dedup_index.py --text FILE [--parts 24] [--paragraphs]

`FILE` holds documents with NUL bytes between them. It is cut into parts of as many documents; all but the
last one are added, one after another, and the last one is looked up when there are 1, 2, 4, ... parts in the
index. Before anything is timed, results are compared with those of `near` and `substrings` over all texts at
once. Processor time of one thread; "add, all" is over all parts so far, merges of files included.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pylm import dedup


def processor_seconds(call: Callable[[], object], rounds: int) -> float:
    """The least of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        call()
        best = min(best, time.process_time() - begin)
    return best


def megabytes(texts: pa.Array) -> float:
    return texts.nbytes / 1e6


def check(parts: list[pa.Array], folder: Path) -> None:
    """The first parts against one call with all of them."""
    index = dedup.NearIndex.create(folder / "near")
    found = [index.add(part) for part in parts]
    starts = np.cumsum([0, *map(len, parts)])
    cluster = [
        np.where(f.document >= 0, f.document, f.cluster + s) for f, s in zip(found, starts, strict=False)
    ]
    together = pa.concat_arrays(parts)
    assert np.array_equal(np.concatenate(cluster), dedup.near(together).cluster)
    windows = dedup.SubstringIndex.create(folder / "windows", gap=1)
    windows.add(parts[0])
    spans, exact = windows.find(parts[1]), dedup.substrings(parts[1], against=parts[0])
    assert np.array_equal(spans.start, exact.start)
    assert np.array_equal(spans.end, exact.end)


def measure_near(parts: list[pa.Array], folder: Path, shingle_bits: dedup.ShingleBits) -> None:
    index = dedup.NearIndex.create(folder / f"near-{shingle_bits}", shingle_bits=shingle_bits)
    query, added, seconds = parts[-1], 0.0, 0.0
    for number, part in enumerate(parts[:-1], 1):
        now = processor_seconds(lambda part=part: index.add(part, num_threads=1), 1)
        added, seconds = added + megabytes(part), seconds + now
        if number & (number - 1) and number != len(parts) - 1:
            continue
        times = [
            processor_seconds(lambda: dedup.near(query, num_threads=1), 3),
            processor_seconds(lambda: index.query(query, num_threads=1), 3),
            processor_seconds(lambda: index.deduplicate(query, num_threads=1), 3),
        ]
        near, lookup, deduplicate = (megabytes(query) / t for t in times)
        print(
            f"| {shingle_bits} | {added:.0f} | {len(index)} | {index.num_files} | "
            f"{megabytes(part) / now:.0f} | {added / seconds:.0f} | {lookup:.0f} | {deduplicate:.0f} | "
            f"{near:.0f} | {index.num_bytes / len(index):.0f} | {index.num_bytes / added / 1e6:.2f} |",
            flush=True,
        )


def measure_substrings(parts: list[pa.Array], folder: Path, gap: int) -> None:
    index = dedup.SubstringIndex.create(folder / f"windows-{gap}", gap=gap)
    query, added, seconds = parts[-1], 0.0, 0.0
    for number, part in enumerate(parts[:-1], 1):
        now = processor_seconds(lambda part=part: index.add(part, num_threads=1), 1)
        added, seconds = added + megabytes(part), seconds + now
        if number & (number - 1) and number != len(parts) - 1:
            continue
        find = megabytes(query) / processor_seconds(lambda: index.find(query, num_threads=1), 3)
        print(
            f"| {gap} | {added:.0f} | {index.num_windows} | {index.num_files} | "
            f"{megabytes(part) / now:.0f} | {added / seconds:.0f} | {find:.0f} | "
            f"{index.num_bytes / added / 1e6:.2f} |",
            flush=True,
        )
    exact = dedup.substrings(query, against=pa.concat_arrays(parts[:-1]))
    print(f"found with gap {gap}: {index.find(query).size / exact.size:.3f} of the bytes of exact spans")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--parts", type=int, default=24)
    parser.add_argument("--paragraphs", action="store_true", help="paragraphs in place of documents")
    arguments = parser.parse_args()
    documents = [text for text in arguments.text.read_bytes().split(b"\0") if text]
    if arguments.paragraphs:
        documents = [part for text in documents for part in text.split(b"\n\n") if len(part) > 60]
    cuts = np.linspace(0, len(documents), arguments.parts + 1).astype(int)
    parts = [pa.array(documents[begin:end], pa.large_binary()) for begin, end in pairwise(cuts)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check(parts[:3], folder)
        print(
            "| shingle bits | MB added | documents | files | add MB/s | add, all MB/s | query | "
            "deduplicate | near | bytes a document | bytes a byte |"
        )
        for bits in (64, 32, 0):
            measure_near(parts, folder, bits)
        print("| gap | MB added | windows | files | add MB/s | add, all MB/s | find | bytes a byte |")
        for gap in (8, 32, 100):
            measure_substrings(parts, folder, gap)


if __name__ == "__main__":
    main()

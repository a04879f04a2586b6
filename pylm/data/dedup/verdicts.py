"""What deduplication decided: which documents go, in favour of which, and why."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pylm.data.dedup.blocks import read_arrays, write_blocks
from pylm.data.dedup.signing import Part

EXACT, NEAR, INDEXED = 0, 1, 2
REASONS = ("exact", "near", "indexed")
NUM_LARGEST = 20
"""Clusters that are shown."""
NUM_SHOWN = 3
"""Removed documents that are shown of each."""
_RECORD = ("<u4", "<i8", "<f8", "u1")


class Verdicts(NamedTuple):
    """Documents that go, one a row.

    Attributes:
        docs: int64 (num_removed,); their numbers in the corpus.
        kept: int64 (num_removed,); of what stays in the place of each; for INDEXED its id in the index.
        similarity: float64 (num_removed,); of the two.
        reason: uint8 (num_removed,); index of `REASONS`: EXACT where the two are equal,
            INDEXED where a document of an index stands for it.
    """

    docs: NDArray[np.int64]
    kept: NDArray[np.int64]
    similarity: NDArray[np.float64]
    reason: NDArray[np.uint8]


def exact_verdicts(copies: NDArray[np.int64], stays: NDArray[np.int64]) -> Verdicts:
    """Say of copies that they go in favour of what they are equal to."""
    return Verdicts(copies, stays, np.ones(len(copies)), np.full(len(copies), EXACT, np.uint8))


def write_verdicts(path: str, parts: Sequence[Part], verdicts: Verdicts) -> None:
    """Write verdicts in a file with a block a part, each in the order of its rows."""
    order = np.argsort(verdicts.docs)
    docs, kept, similarity, reason = (column[order] for column in verdicts)
    firsts = np.array([part.first for part in parts])
    bounds = [*np.searchsorted(docs, firsts), len(docs)]
    blocks = (
        [(docs[a:b] - first).astype("<u4"), kept[a:b], similarity[a:b], reason[a:b]]
        for first, (a, b) in zip(firsts, itertools.pairwise(bounds), strict=True)
    )
    write_blocks(path, blocks, num=len(parts))


def read_verdicts(paths: Sequence[str], number: int, part: Part) -> Verdicts:
    """Read what was decided about a part, in the order of its rows."""
    columns: list[list[NDArray[Any]]] = [[np.zeros(0, dtype)] for dtype in _RECORD]
    for path in paths:
        for gathered, array in zip(columns, read_arrays(path, number, *_RECORD), strict=True):
            gathered.append(array)
    rows, kept, similarity, reason = (np.concatenate(column) for column in columns)
    order = np.argsort(rows)
    return Verdicts(rows[order] + np.int64(part.first), kept[order], similarity[order], reason[order])


def count_clusters(
    removed: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count the documents that go in favour of each other one.

    Returns:
        Those that stay, ascending; how many each stands for; (num_kept, NUM_SHOWN) the first of these, -1
        where there are fewer.
    """
    order = np.lexsort((removed, kept))
    documents, starts, counts = np.unique(kept[order], return_index=True, return_counts=True)
    shown = np.full((len(documents), NUM_SHOWN), -1, np.int64)
    for place in range(NUM_SHOWN):
        has = counts > place
        shown[has, place] = removed[order][starts[has] + place]
    return documents, counts.astype(np.int64), shown


def largest_clusters(removed: NDArray[np.int64], kept: NDArray[np.int64]) -> list[dict[str, Any]]:
    """List the documents that stand for most others: number, size of the cluster, the first that went."""
    documents, counts = np.unique(kept, return_counts=True)
    chosen = np.lexsort((documents, -counts))[:NUM_LARGEST]
    return [
        {
            "kept": int(documents[i]),
            "size": int(counts[i]) + 1,
            "removed": np.sort(removed[kept == documents[i]])[:NUM_SHOWN].tolist(),
        }
        for i in chosen
    ]

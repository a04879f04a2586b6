"""Texts of a corpus put together for other tasks than those of their splits: one block a task and split."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pylm.data import storage
from pylm.data.dedup.blocks import group, read_arrays, read_block, write_blocks
from pylm.data.dedup.corpus import read_rows, texts_of
from pylm.data.dedup.priorities import preference
from pylm.data.dedup.signing import Part, check_unchanged, load_parts


def stage_file(folder: str, stage: str, number: int) -> str:
    """Give the path of a task's file."""
    return storage.join(folder, stage, f"{number:05d}.blocks")


def sizes_and_keys(part: Part, num_keys: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the sizes of a split's texts, (num_docs,), and what decides which stays, (num_docs, num_keys)."""
    sizes, keys = read_arrays(part.blocks, -1, "<i8", "<i8")
    return sizes, keys.reshape(len(sizes), num_keys)


def gather(
    number: int,
    *,
    folder: str,
    parts_path: str,
    num_keys: int,
    text_column: str,
    num_tasks: int,
    members: str,
    stage: str,
) -> None:
    """Put texts of a split together for tasks.

    Args:
        number: of the split.
        folder: of the stages' files.
        parts_path: list of the splits.
        num_keys: numbers that decide which copy stays.
        text_column: that holds the texts.
        num_tasks: how many there are.
        members: file in the folder with a block a split: rows, and the task of each.
        stage: folder of the files that are written, a block a task.
    """
    part = load_parts(parts_path)[number]
    rows, tasks = read_arrays(storage.join(folder, members), number, "<u4", "<u4")
    column = "text" if part.split.kind == "jsonl" else text_column
    wanted = rows.astype(np.int64)
    texts = [pa.array([], pa.large_string())]
    if len(wanted):
        check_unchanged(part.split)
        for first, batch in read_rows(part.path, part.start, part.stop, columns=[column], wanted=wanted):
            here = wanted[slice(*np.searchsorted(wanted, [first, first + len(batch)]))]
            texts.append(texts_of(batch, column).take(pa.array(here - first)))
        check_unchanged(part.split)
    keys = sizes_and_keys(part, num_keys)[1][wanted]
    order, bounds = group(tasks, num_tasks)
    gathered = pa.concat_arrays(texts).take(pa.array(order))
    rows, keys = rows[order], keys[order]
    blocks = (
        [rows[a:b], keys[a:b], *_buffers_of(gathered.slice(a, b - a))] for a, b in itertools.pairwise(bounds)
    )
    write_blocks(stage_file(folder, stage, number), blocks, num=num_tasks)


def _buffers_of(texts: pa.LargeStringArray) -> list[Any]:
    """Give offsets from 0 on, and the bytes; a null becomes an empty text, which has no shingles either."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    size = int(bounds[-1] - bounds[0])
    return [bounds - bounds[0], data.slice(int(bounds[0]), size) if size else pa.py_buffer(b"")]


def read_gathered(
    number: int, *, folder: str, parts_path: str, num_keys: int, stage: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.ChunkedArray]:
    """Read what was gathered for a task, in the order of the corpus.

    Returns:
        Numbers of the documents, ascending; what decides which stays, (num_docs, num_keys); the texts.
    """
    parts = load_parts(parts_path)
    all_ids, all_keys = [np.zeros(0, np.int64)], [np.zeros((0, num_keys), np.int64)]
    texts = []
    for place, part in enumerate(parts):
        rows, keys, offsets, data = read_block(stage_file(folder, stage, place), number, mapped=True)
        ids = np.frombuffer(rows, "<u4").astype(np.int64) + part.first
        if len(ids):
            all_ids.append(ids)
            all_keys.append(np.frombuffer(keys, "<i8").reshape(len(ids), num_keys))
            texts.append(pa.LargeStringArray.from_buffers(len(ids), offsets, data))
    return np.concatenate(all_ids), np.concatenate(all_keys), pa.chunked_array(texts, pa.large_string())


def ranks_of(keys: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number documents so that of two the one that is to stay has the larger number."""
    ranks = np.empty(len(ids), np.int64)
    ranks[preference(keys, ids)] = np.arange(len(ids), 0, -1)
    return ranks

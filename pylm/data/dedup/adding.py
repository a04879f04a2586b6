"""A crawl goes into an index: in batches, in the order in which its documents are preferred.

    work/RECIPE/
        ordered.blocks          a block a split: rows, and the batch of each; with priorities only
        ordered.json            how many batches there are; written after it
        ordered/SSSSS.blocks    a split's texts, a block a batch
        added.json              says that all is in the index

Batch after batch gives what one call with all texts would: the index numbers documents in the order of the
preference, and whatever a text is compared with stands before it.
"""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pylm.data import storage
from pylm.data.dedup.blocks import read_arrays, write_blocks
from pylm.data.dedup.corpus import read_rows, texts_of
from pylm.data.dedup.gathering import gather, ranks_of, read_gathered, sizes_and_keys, stage_file
from pylm.data.dedup.indexed import Crawl, IndexedConfig, Known, Wanted, adding
from pylm.data.dedup.priorities import preference
from pylm.data.dedup.run import Run
from pylm.data.dedup.signing import Part, check_unchanged, load_parts
from pylm.errors import InputError
from pylm.text import dedup


def report_index(run: Run, config: IndexedConfig, wanted: Wanted, **found: object) -> dict[str, Any]:
    """Add a corpus where that is wanted.

    Args:
        run: the deduplication.
        config: its recipe.
        wanted: the index.
        found: what else is to be said.

    Returns:
        For the report: the folder, `texts` of the index before, and what `add_crawl` gives.
    """
    known = run.known
    assert known is not None, "there is an index"
    added = add_crawl(run, config) if wanted.adds else {}
    return {"folder": known.folder, "texts": known.num_texts, "added": 0, **found, **added}


def add_crawl(run: Run, config: IndexedConfig) -> dict[str, Any]:
    """Add a corpus to the index that it was compared with, once, however often this is called.

    Returns:
        How many texts were `added` and, of an index of documents, its `documents` after that.

    Raises:
        InputError: the index has changed since the run began, or another process adds to it.
    """
    known = run.known
    assert known is not None, "there is an index"
    common: dict[str, Any] = {
        "folder": run.folder,
        "parts_path": run.parts_path,
        "num_keys": config.num_keys,
        "text_column": config.text_column,
    }
    if config.num_keys:
        ordered = storage.join(run.folder, "ordered.json")
        order = partial(_order, **common, batch_bytes=config.index_batch_bytes)
        run.stage("order for the index", order, [ordered])
        num_batches = storage.read_json(ordered)["batches"]
        work = partial(gather, **common, num_tasks=num_batches, members="ordered.blocks", stage="ordered")
        num_parts = len(load_parts(run.parts_path))
        outputs = [stage_file(run.folder, "ordered", i) for i in range(num_parts)]
        run.stage("gather for the index", work, outputs)
    done = storage.join(run.folder, "added.json")
    add = partial(
        _add, **common, known=known, crawl=run.crawl(known), batch_bytes=config.index_batch_bytes, done=done
    )
    run.stage("add to the index", add, [done])
    added: dict[str, Any] = storage.read_json(done)
    return added


def cut(sizes: NDArray[np.int64], batch_bytes: int) -> NDArray[np.int64]:
    """Give the bounds of batches of successive texts, which end when they have enough bytes, or 2^20 texts.

    Args:
        sizes: (num_docs,) in bytes.
        batch_bytes: from which a batch ends.

    Returns:
        int64 (num_batches + 1,).
    """
    costs = sizes + (batch_bytes >> 20)
    batch = (np.cumsum(costs) - costs) // batch_bytes
    return np.append(np.flatnonzero(np.diff(batch, prepend=-1)), len(sizes))


def _order(
    _: int, *, folder: str, parts_path: str, num_keys: int, text_column: str, batch_bytes: int
) -> None:
    """Put all documents in the order of preference, and cut that into batches."""
    del text_column
    parts = load_parts(parts_path)
    sizes, keys = zip(*(sizes_and_keys(part, num_keys) for part in parts), strict=True)
    all_sizes = np.concatenate(sizes)
    order = preference(np.concatenate(keys), np.arange(len(all_sizes)))
    bounds = cut(all_sizes[order], batch_bytes)
    batch = np.empty(len(order), "<u4")
    batch[order] = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    blocks = (
        [np.arange(part.num_docs, dtype="<u4"), batch[part.first : part.first + part.num_docs]]
        for part in parts
    )
    write_blocks(storage.join(folder, "ordered.blocks"), blocks, num=len(parts))
    storage.write_json(storage.join(folder, "ordered.json"), {"batches": len(bounds) - 1})


def _add(
    _: int,
    *,
    folder: str,
    parts_path: str,
    num_keys: int,
    text_column: str,
    known: Known,
    crawl: Crawl,
    batch_bytes: int,
    done: str,
) -> None:
    """Add the batches that are not in the index yet, one after another."""
    parts = load_parts(parts_path)
    if num_keys:
        num_batches = storage.read_json(storage.join(folder, "ordered.json"))["batches"]
        gathered = partial(
            read_gathered, folder=folder, parts_path=parts_path, num_keys=num_keys, stage="ordered"
        )
        counts = _count_ordered(parts, storage.join(folder, "ordered.blocks"), num_batches)
        bounds = np.append(0, np.cumsum(counts))
    else:
        bounds = cut(np.concatenate([sizes_and_keys(part, 0)[0] for part in parts]), batch_bytes)
    with adding(known, crawl, parts):
        index: dedup.NearIndex | dedup.SubstringIndex
        kind = dedup.NearIndex if known.kind == "near" else dedup.SubstringIndex
        index = kind(known.folder, check=False)
        index.finish_merges()  # of an addition that was cut off: the files become those of one that was not
        already = index.num_texts - known.num_texts
        if already not in bounds:
            raise InputError(
                f"{known.folder}: another program has added to the index since this crawl was begun "
                f"({already} texts more than before); go back to a copy of the index"
            )
        for number, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
            if begin < already:
                continue
            if num_keys:
                ids, keys, texts = gathered(number)
            else:
                ids, keys, texts = np.arange(begin, end), None, _read_texts(parts, begin, end, text_column)
            if isinstance(index, dedup.NearIndex):
                priority = None if keys is None else ranks_of(keys, ids)
                index.add(texts, ids=ids + known.num_texts, priority=priority)
            else:
                index.add(texts)
    counted = {"added": int(bounds[-1])}
    if isinstance(index, dedup.NearIndex):
        counted["documents"] = len(index)
    storage.write_json(done, counted)


def _count_ordered(parts: tuple[Part, ...], path: str, num_batches: int) -> NDArray[np.int64]:
    counts = np.zeros(num_batches, np.int64)
    for number in range(len(parts)):
        counts += np.bincount(read_arrays(path, number, "<u4", "<u4")[1], minlength=num_batches)
    return counts


def _read_texts(parts: tuple[Part, ...], begin: int, end: int, text_column: str) -> pa.ChunkedArray:
    """Read the texts of documents [begin, end) of a corpus."""
    chunks = []
    for part in parts:
        start, stop = max(begin - part.first, 0), min(end - part.first, part.num_docs)
        if start >= stop:
            continue
        column = "text" if part.split.kind == "jsonl" else text_column
        check_unchanged(part.split)
        wanted = np.arange(start, stop)
        for first, batch in read_rows(part.path, part.start, part.stop, columns=[column], wanted=wanted):
            here = slice(max(start - first, 0), max(min(stop - first, len(batch)), 0))
            if here.start < here.stop:
                chunks.append(texts_of(batch.slice(here.start, here.stop - here.start), column))
        check_unchanged(part.split)
    return pa.chunked_array(chunks, pa.large_string())

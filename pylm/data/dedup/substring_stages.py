"""Repeated substrings of a corpus larger than memory, in stages over splits and partitions.

    work/RECIPE/
        parts.json, sources.json    the splits of the corpus, and of `against`
        copies/PPPPP.blocks         a block a split: texts that equal an earlier one, and such as these equal
        keys-LEVEL/SSSSS.blocks     a split's keys, a block a partition, ascending; on level 0 then windows
                                    that repeat in the split, and those with an equal one before
        repeats-LEVEL/PPPPP.blocks  a block a split: its keys that other splits have; then keys to divide;
                                    then contexts, these with those to divide, and the most of one key
        divided-LEVEL.blocks        keys of all levels up to this one that are divided
        contexts/SSSSS.blocks       a split's contexts, a block a comparing task: row, place, offsets, bytes
        compared/GGGGG.blocks       a block a split: its windows that go
        seen/SSSSS.blocks           with an index: what it finds in a split's texts: row, start, end
        spans/SSSSS.blocks          what all windows of a split that go cover, and what the index finds: row,
                                    start, end; of each then the bytes that the index finds

Splits of `against` are numbered before those of the corpus. A window is `min_bytes` successive bytes of a
text. Why this finds what `dedup.substrings` finds in the whole corpus, to the byte:

1. A window's anchor, and so its key, is chosen by the window's bytes alone: equal windows have equal keys,
   whatever stands around them, in runs and periods too. Each window has one key; a text shorter than a window
   has none.
2. Of equal windows of a split, `keys-0` finds all but the first, by comparing bytes in memory; the first in
   the order of rows and places gets a key. So a window of another split equals some window of this split if
   and only if it equals one that has a key here.
3. A key that only one split has is one of windows that no other split holds. Windows of all other keys travel
   with their bytes, as contexts: the windows of one key and anchor, end to end. Contexts of a key meet in one
   task, in the order of splits, rows and places, and are compared there as texts are, byte by byte.
4. keep="first": a window goes if an equal one stands before it in its split, which is found in 2., or in a
   split before; then the first of its kind in its split is found in 3., and the others were in 2.
   keep="none": of several equal windows in a split all go by 2.; one that is alone in its split is the first,
   and goes by 3. With `against`, the first of its kind in a split is found in 3., and what equals that is
   then looked for in the split's texts.
5. Between the windows of a context may stand some that have no key; what is found of these is true as well.
6. A text that equals an earlier one, by a hash of 128 bits, takes no part in 2. to 4.: all of its windows go,
   and what equals one of them equals one of the earlier text. With keep="none" all of that text's go too.
   With `against` every text takes part.

With an index, what `SubstringIndex.find` finds in a text goes as well: a union of spans.

So what a task holds is a split, or a part of the keys or contexts. A text that stands everywhere sends one
copy a split. At its borders windows differ from document to document: a key of more than `most_contexts`
contexts is divided, by longer and longer parts of its windows, at last into single windows, of which a split
sends one.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pylm import _core
from pylm.data import storage
from pylm.data.dedup.blocks import group, read_arrays, read_block, write_blocks
from pylm.data.dedup.corpus import read_rows, texts_of
from pylm.data.dedup.indexed import IndexedConfig, Known, Wanted, absolute, check_index, open_substring
from pylm.data.dedup.run import Run
from pylm.data.dedup.signing import (
    Part,
    check_unchanged,
    first_copies,
    hash_record,
    load_parts,
    partition_of,
    read_partition,
)
from pylm.errors import InputError
from pylm.text import dedup

PARTITION_BYTES = 256 << 20

Windows: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Runs of windows: row in the split, place of the first, and of the one behind the last."""

_NO_WINDOWS: Windows = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
_NO_KEYS = np.zeros(0, np.uint64)
KEY_RECORD = ("<u8", "<u4", "<u4")  # keys; places of those that occur several times; how often these do
KEY_BYTES = 40  # of memory for a key while a partition is sorted
CONTEXT_COPIES = 2  # of contexts in memory while they are compared, with what else that takes


class SubstringDedupConfig(IndexedConfig):
    """Which stretches of texts count as repeated."""

    layout = (*IndexedConfig.layout, "partition_bytes")
    cuts_groups = True
    min_bytes: int = Field(default=100, ge=1, lt=1 << 31)
    """Least length of a stretch, in bytes."""
    keep_copies: Literal["first", "none"] = "first"
    """Whether the first occurrence in the corpus stays, or none."""
    against: tuple[str, ...] = ()
    """Files, folders and globs as the inputs. Where given, what goes is what occurs in their texts, and
    repeats within the corpus stay."""
    index_gap: int | None = Field(default=None, ge=1)
    """Distance of the anchors of a new index at most, as `gap` of `dedup.SubstringIndex`; None for 32, or for
    what is there."""
    partition_bytes: int = Field(default=PARTITION_BYTES, ge=1)
    """Memory that a task may take for keys or contexts of all splits. It decides nothing else."""

    def wanted(self, *, dry_run: bool) -> Wanted | None:
        """Say which index takes part."""
        if not self.index:
            return None
        if self.index_gap is not None and self.index_gap > self.min_bytes:
            raise InputError(
                f"--index-gap must be at most --min-bytes, {self.min_bytes}, got {self.index_gap}; "
                "32 is usual"
            )
        folder = absolute(self.index)
        gap = min(32, self.min_bytes) if self.index_gap is None else self.index_gap
        create = partial(dedup.SubstringIndex.create, folder, min_bytes=self.min_bytes, gap=gap)
        needed = {"min_bytes": self.min_bytes} | ({} if self.index_gap is None else {"gap": gap})
        names = {"min_bytes": "min-bytes", "gap": "index-gap"}
        return Wanted(folder, "substring", self.index_add and not dry_run, needed, names, create)


@dataclass(frozen=True)
class Stages:
    """What all tasks of a run know.

    Attributes:
        folder: of the stages' files.
        parts_path: list of the corpus's splits.
        sources_path: of those of `against`; "" without.
        num_splits: of both.
        num_sources: of `against`.
        min_bytes: bytes of a window.
        keep: which of equal windows stay.
        column: that holds the texts.
        num_partitions: of keys.
        num_hashes: partitions of the texts' hashes; 0 where every text takes part.
        most_contexts: a key of more is divided.
        known: an index whose stretches go too, if there is one.
    """

    folder: str
    parts_path: str
    sources_path: str
    num_splits: int
    num_sources: int
    min_bytes: int
    keep: Literal["first", "none"]
    column: str
    num_partitions: int
    num_hashes: int
    most_contexts: int
    known: Known | None

    def path(self, stage: str, number: int) -> str:
        """Give the path of a task's file."""
        return storage.join(self.folder, stage, f"{number:05d}.blocks")

    def paths(self, stage: str, count: int) -> list[str]:
        """Give the paths of the files of all tasks."""
        return [self.path(stage, number) for number in range(count)]

    def divided_path(self, level: int) -> str:
        """Give the path of the list of divided keys."""
        return storage.join(self.folder, f"divided-{level}.blocks")

    def part(self, number: int) -> Part:
        """Give a split."""
        if number < self.num_sources:
            return load_parts(self.sources_path)[number]
        return load_parts(self.parts_path)[number - self.num_sources]

    def copies(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the rows of a split that equal an earlier text, and those that later ones equal, ascending."""
        files = [read_arrays(path, number, "<u4", "<u4") for path in self.paths("copies", self.num_hashes)]
        empty = [np.zeros(0, "<u4")] * 2
        copies, kept = (np.concatenate(x) for x in zip(empty, *files, strict=True))
        return np.sort(copies).astype(np.int64), np.unique(kept).astype(np.int64)

    def read_distinct(self, number: int) -> pa.ChunkedArray:
        """Read the texts of a split, with nulls for those that equal an earlier one."""
        texts, firsts = self.read_texts(number)
        copies = self.copies(number)[0]
        if not len(copies):
            return texts
        chunks = []
        for first, chunk in zip(firsts, texts.chunks, strict=True):
            here = copies[slice(*np.searchsorted(copies, [first, first + len(chunk)]))]
            chunks.append(_without(chunk, here - first))
        return pa.chunked_array(chunks, pa.large_string())

    def read_texts(
        self, number: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[pa.ChunkedArray, list[int]]:
        """Read the texts of a split, or of its row groups that hold some of the rows.

        Returns:
            Texts in chunks, and the row of the first of each chunk.
        """
        part = self.part(number)
        column = "text" if part.split.kind == "jsonl" else self.column
        check_unchanged(part.split)
        chunks, firsts = [], []
        for first, batch in read_rows(part.path, part.start, part.stop, columns=[column], wanted=rows):
            chunks.append(texts_of(batch, column))
            firsts.append(first)
        check_unchanged(part.split)
        return pa.chunked_array(chunks, pa.large_string()), firsts


def find_spans(run: Run, config: SubstringDedupConfig) -> list[str]:
    """Find the stretches that occur more than once in the corpus, as `dedup.substrings` says it.

    Returns:
        Paths of a file a split, whose block 0 holds rows (`<u4`, ascending), starts and ends (`<i8`), and
        block 1 how many bytes of each span an index finds (`<i8`).
    """
    parts = load_parts(run.parts_path)
    sources = load_parts(run.sources_path) if run.sources_path else ()
    stages = _plan(run, config, [*sources, *parts], len(sources))
    numbers = range(stages.num_sources, stages.num_splits)
    if run.known is not None:
        checked = storage.join(run.folder, "checked.json")
        run.stage("check the index", partial(check_index, known=run.known, done=checked), [checked])
        seen = [stages.path("seen", number) for number in numbers]
        run.stage("find in the index", partial(find_seen, stages=stages, known=run.known), seen, numbers)
    find_copies = partial(copies_of, stages=stages, num_keys=config.num_keys)
    if stages.num_hashes:
        run.stage("copies", find_copies, stages.paths("copies", stages.num_hashes))
    num_levels = _find_repeats(run, stages)
    num_tasks = _num_tasks(stages, config, num_levels)
    gather = partial(gather_contexts, stages=stages, num_levels=num_levels, num_tasks=num_tasks)
    if num_tasks:
        run.stage("contexts", gather, stages.paths("contexts", stages.num_splits))
        run.stage("compare", partial(compare_contexts, stages=stages), stages.paths("compared", num_tasks))
    paths = [stages.path("spans", number) for number in numbers]
    run.stage("spans", partial(cover, stages=stages, num_tasks=num_tasks), paths, numbers)
    return paths


def _plan(run: Run, config: SubstringDedupConfig, parts: Sequence[Part], num_sources: int) -> Stages:
    num_keys = int(keys_a_byte(config.min_bytes) * sum(part.num_bytes for part in parts))
    return Stages(
        folder=run.folder,
        parts_path=run.parts_path,
        sources_path=run.sources_path,
        num_splits=len(parts),
        num_sources=num_sources,
        min_bytes=config.min_bytes,
        keep=config.keep_copies,
        column=config.text_column,
        num_partitions=math.ceil((num_keys + 1) * KEY_BYTES / config.partition_bytes),
        num_hashes=0 if num_sources or run.sources_path else run.num_partitions,
        most_contexts=most_contexts(config.min_bytes, config.partition_bytes, len(parts)),
        known=run.known,
    )


def keys_a_byte(min_bytes: int) -> float:
    """Keys of a byte of text, in the mean; see csrc/dedup/substring_anchors.hpp."""
    spread = min_bytes // 2 + 1
    return 2 / (spread + 1)


def context_bytes(min_bytes: int) -> int:
    """Bytes of a context with all windows that an anchor can have, and of what describes it."""
    return min_bytes + min_bytes // 2 + 56


def most_contexts(min_bytes: int, partition_bytes: int, num_splits: int) -> int:
    """Contexts that a key may have, else it is divided; a single window, which cannot be, has one a split."""
    return max(partition_bytes // (8 * context_bytes(min_bytes) * CONTEXT_COPIES), num_splits)


def _find_repeats(run: Run, stages: Stages) -> int:
    """Find the keys that several splits have, level by level. Returns the number of levels."""
    num_splits, num_partitions = stages.num_splits, stages.num_partitions
    level = 0
    while True:
        keys = (
            partial(find_keys, stages=stages) if level == 0 else partial(divide, stages=stages, level=level)
        )
        run.stage(f"keys {level}", keys, stages.paths(f"keys-{level}", num_splits))
        if num_splits == 1:
            return 0
        compare = partial(find_repeats, stages=stages, level=level)
        run.stage(f"repeats {level}", compare, stages.paths(f"repeats-{level}", num_partitions))
        found = [
            read_arrays(x, num_splits, "<u8")[0] for x in stages.paths(f"repeats-{level}", num_partitions)
        ]
        divided = np.concatenate([_NO_KEYS, *found])
        if not len(divided):
            return level + 1
        path = stages.divided_path(level)
        if not storage.exists(path):
            write_blocks(path, [[np.union1d(divided, _read_divided(stages, level - 1))]], num=1)
        level += 1


def _num_tasks(stages: Stages, config: SubstringDedupConfig, num_levels: int) -> int:
    num_contexts = sum(
        int(read_arrays(path, stages.num_splits + 1, "<i8")[0][0])
        for level in range(num_levels)
        for path in stages.paths(f"repeats-{level}", stages.num_partitions)
    )
    needed = num_contexts * context_bytes(stages.min_bytes) * CONTEXT_COPIES
    return math.ceil(needed / config.partition_bytes)


def copies_of(partition: int, stages: Stages, num_keys: int) -> None:
    """Find the texts that equal an earlier one, among the hashes of a partition."""
    parts = load_parts(stages.parts_path)
    ids, (low, high, *_) = read_partition(parts, partition, hash_record(num_keys))
    _, copies, stays = first_copies(np.stack([low, high], 1), np.zeros((len(ids), 0), np.int64), ids)
    found = [np.sort(ids[copies]), np.unique(ids[stays])]
    firsts = [part.first for part in parts]
    bounds = [[*np.searchsorted(docs, firsts), len(docs)] for docs in found]
    blocks = (
        [
            (docs[cuts[i] : cuts[i + 1]] - first).astype("<u4")
            for docs, cuts in zip(found, bounds, strict=True)
        ]
        for i, first in enumerate(firsts)
    )
    write_blocks(stages.path("copies", partition), blocks, num=len(parts))


def find_keys(number: int, stages: Stages) -> None:
    """Find what repeats within a split, and the keys of the windows that stand there for the first time."""
    keep = "first" if stages.sources_path else stages.keep
    texts = stages.read_distinct(number)
    removed, later = _core.repeated_windows(texts, None, length=stages.min_bytes, keep=keep, num_threads=1)
    keys = _NO_KEYS
    if stages.num_splits > 1:
        keys, _ = _core.window_keys(
            texts, stages.min_bytes, *(later or removed), divided=_NO_KEYS, least_level=0
        )
    _write_keys(stages, 0, number, keys, [removed, later or ()])


def divide(number: int, stages: Stages, level: int) -> None:
    """Find the longer keys of windows whose keys of the level before too many contexts have."""
    divided = _read_divided(stages, level - 1)
    before = stages.path(f"keys-{level - 1}", number)
    blocks = [read_arrays(before, i, *KEY_RECORD)[0] for i in range(stages.num_partitions)]
    keys = _NO_KEYS
    if np.isin(np.concatenate(blocks), divided).any():
        texts = stages.read_distinct(number)
        known = _read_windows(stages, number)[1]
        keys, _ = _core.window_keys(texts, stages.min_bytes, *known, divided=divided, least_level=level)
    _write_keys(stages, level, number, keys, [])


def find_repeats(partition: int, stages: Stages, level: int) -> None:
    """Find the keys of a partition that several splits have; with `against`, splits of both kinds."""
    keys, owners, counts = [_NO_KEYS], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for number in range(stages.num_splits):
        own, several, times = read_arrays(stages.path(f"keys-{level}", number), partition, *KEY_RECORD)
        count = np.ones(len(own), np.int64)
        count[several] = times
        keys.append(own.view(np.uint64))
        owners.append(np.full(len(own), number, np.int32))
        counts.append(count)
    key, owner, count = np.concatenate(keys), np.concatenate(owners), np.concatenate(counts)
    del keys, owners, counts
    order = np.argsort(key, kind="stable")
    key, owner, count = key[order], owner[order], count[order]
    starts = _starts(key)
    sizes = np.diff(starts, append=len(key))
    is_shared = sizes > 1
    if stages.sources_path:  # the owners of a key rise
        is_shared = (owner[starts] < stages.num_sources) & (owner[starts + sizes - 1] >= stages.num_sources)
    total = np.add.reduceat(count, starts) if len(starts) else count
    is_divided = is_shared & (total > stages.most_contexts)
    whole = is_shared & ~is_divided
    most = total[is_shared].max(initial=0)
    more = [[key[starts[is_divided]]], [np.array([total[whole].sum(), total[is_shared].sum(), most], "<i8")]]
    is_whole = np.repeat(whole, sizes)
    key, owner = key[is_whole], owner[is_whole]
    order, bounds = group(owner, stages.num_splits)
    blocks = [[key[order[a:b]]] for a, b in itertools.pairwise(bounds)] + more
    write_blocks(stages.path(f"repeats-{level}", partition), blocks, num=len(blocks))


def gather_contexts(number: int, stages: Stages, num_levels: int, num_tasks: int) -> None:
    """Gather the bytes of a split's windows whose keys other splits have, for the tasks that compare them."""
    repeats = [
        stages.path(f"repeats-{level}", partition)
        for level in range(num_levels)
        for partition in range(stages.num_partitions)
    ]
    wanted = np.sort(np.concatenate([_NO_KEYS, *(read_arrays(path, number, "<u8")[0] for path in repeats)]))
    rows, begin, offsets = (np.zeros(0, np.int64),) * 3
    data, bounds = np.zeros(0, np.uint8), np.zeros(num_tasks + 1, np.int64)
    if len(wanted):
        texts = stages.read_distinct(number)
        known, divided = _read_windows(stages, number)[1], _read_divided(stages, num_levels - 2)
        keys, runs = _core.window_keys(texts, stages.min_bytes, *known, divided=divided, least_level=0)
        found = find_in(keys, wanted)
        tasks = partition_of(keys[found], num_tasks)
        rows, begin, end = (x[found] for x in runs)
        order = np.lexsort((begin, rows, tasks))
        rows, begin, end = rows[order], begin[order], end[order]
        bounds = np.searchsorted(tasks[order], np.arange(num_tasks + 1))
        offsets, data = _core.copy_windows(texts, stages.min_bytes, rows, begin, end)
    offsets = offsets if len(offsets) else np.zeros(1, np.int64)
    blocks = (
        [rows[a:b], begin[a:b], offsets[a : b + 1] - offsets[a], data[offsets[a] : offsets[b]]]
        for a, b in itertools.pairwise(bounds)
    )
    write_blocks(stages.path("contexts", number), blocks, num=num_tasks)


def compare_contexts(task: int, stages: Stages) -> None:
    """Compare contexts of all splits, byte by byte, in the order of the corpus."""
    rows, begins, chunks = [], [], []
    for number in range(stages.num_splits):
        row, begin, offsets, data = read_block(stages.path("contexts", number), task, mapped=True)
        rows.append(np.frombuffer(row, "<i8"))
        begins.append(np.frombuffer(begin, "<i8"))
        chunks.append(pa.Array.from_buffers(pa.large_binary(), len(rows[-1]), [None, offsets, data]))
    first = stages.num_sources
    against = pa.chunked_array(chunks[:first], pa.large_binary()) if stages.sources_path else None
    texts = pa.chunked_array(chunks[first:], pa.large_binary())
    (context, start, stop), _ = _core.repeated_windows(
        texts, against, length=stages.min_bytes, keep=stages.keep, num_threads=1
    )
    bounds = np.cumsum([0, *(len(row) for row in rows[first:])])
    found = np.searchsorted(context, bounds)
    blocks = [_NO_WINDOWS] * first
    for row, begin, base, a, b in zip(
        rows[first:], begins[first:], bounds[:-1], found[:-1], found[1:], strict=True
    ):
        here = context[a:b] - base
        blocks.append((row[here], begin[here] + start[a:b], begin[here] + stop[a:b]))
    write_blocks(stages.path("compared", task), blocks, num=stages.num_splits)


def find_seen(number: int, stages: Stages, known: Known) -> None:
    """Find the stretches of a split's texts that an index has."""
    texts, _ = stages.read_texts(number)
    spans = open_substring(known).find(texts, num_threads=1)
    write_blocks(stages.path("seen", number), [[spans.doc, spans.start, spans.end]], num=1)


def cover(number: int, stages: Stages, num_tasks: int) -> None:
    """Turn all windows of a split that go into spans that cut no character."""
    found = [read_arrays(path, number, *["<i8"] * 3) for path in stages.paths("compared", num_tasks)]
    if stages.sources_path:
        removed = join_windows(found)
        texts, firsts = stages.read_texts(number, None if len(removed[0]) else removed[0])
        if len(removed[0]):
            offsets, data = _core.copy_windows(texts, stages.min_bytes, *removed)
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
            stretches = pa.Array.from_buffers(pa.large_binary(), len(removed[0]), buffers)
            removed, _ = _core.repeated_windows(
                texts, stretches, length=stages.min_bytes, keep="first", num_threads=1
            )
    else:
        removed = join_windows([*found, _read_windows(stages, number)[0], _windows_of_copies(stages, number)])
        texts, firsts = stages.read_texts(number, np.unique(removed[0]))
    spans: list[Windows] = [_NO_WINDOWS]
    for first, chunk in zip(firsts, texts.chunks, strict=True):
        here = slice(*np.searchsorted(removed[0], [first, first + len(chunk)]))
        rows, begin, end = (x[here] for x in removed)
        row, start, stop = _core.spans_of_windows(chunk, stages.min_bytes, rows - first, begin, end)
        spans.append((row + first, start, stop))
    row, start, stop = (np.concatenate(x) for x in zip(*spans, strict=True))
    in_index = np.zeros(len(row), np.int64)
    if stages.known is not None:
        seen = read_arrays(stages.path("seen", number), 0, *["<i8"] * 3)
        row, start, stop = join_windows([(row, start, stop), seen])
        in_index = _overlap((row, start, stop), seen)
    write_blocks(stages.path("spans", number), [[row.astype("<u4"), start, stop], [in_index]], num=2)


def _overlap(spans: Windows, parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Give the bytes of spans that lie in parts, of which each lies in one span."""
    row, start, stop = spans
    part_row, part_start, part_stop = parts
    sizes = np.zeros(len(row), np.int64)
    if len(row):
        width = int(stop.max()) + 1
        place = np.searchsorted(row * width + start, part_row * width + part_start, side="right") - 1
        np.add.at(sizes, place, part_stop - part_start)
    return sizes


def _windows_of_copies(stages: Stages, number: int) -> Windows:
    """Give all windows of the texts that go as a whole."""
    copies, kept = stages.copies(number)
    rows = np.union1d(copies, kept) if stages.keep == "none" else copies
    sizes = read_arrays(stages.part(number).blocks, -1, "<i8", "<i8")[0]
    rows = rows[sizes[rows] >= stages.min_bytes]
    return rows, np.zeros(len(rows), np.int64), sizes[rows] - stages.min_bytes + 1


def _without(texts: pa.LargeStringArray, rows: NDArray[np.int64]) -> pa.LargeStringArray:
    """Give texts with nulls in some rows; bytes are shared."""
    is_valid = texts.is_valid().to_numpy(zero_copy_only=False)
    is_valid[rows] = False
    _, offsets, data = texts.buffers()
    bitmap = pa.py_buffer(np.packbits(is_valid, bitorder="little"))
    return pa.LargeStringArray.from_buffers(len(texts), offsets.slice(8 * texts.offset), data, bitmap)


def find_in(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Find the places of keys that are among some ascending ones, of which there are any."""
    # Most are none: a table by their upper bits tells at a third of the search's time.
    bits = min(26, (8 * len(wanted)).bit_length())
    slots = np.zeros(1 << bits, np.bool_)
    slots[wanted >> np.uint64(64 - bits)] = True
    places = np.flatnonzero(slots[keys >> np.uint64(64 - bits)])
    near = keys[places]
    is_wanted = wanted[np.minimum(np.searchsorted(wanted, near), len(wanted) - 1)] == near
    found: NDArray[np.intp] = places[is_wanted]
    return found


def join_windows(parts: Sequence[Sequence[NDArray[Any]]]) -> Windows:
    """Put runs of windows in order, those that touch or overlap as one."""
    row, begin, end = (np.concatenate(x) for x in zip(_NO_WINDOWS, *parts, strict=True))
    order = np.lexsort((begin, row))
    row, begin, end = row[order], begin[order], end[order]
    if not len(row):
        return _NO_WINDOWS
    # Rows laid so far from each other that no run reaches the next one's.
    base = row * (int(end.max()) + 1)
    furthest = np.maximum.accumulate(base + end)
    first = np.flatnonzero(np.append(True, base[1:] + begin[1:] > furthest[:-1]))
    return row[first], begin[first], np.append(furthest[first[1:] - 1], furthest[-1]) - base[first]


def _write_keys(
    stages: Stages, level: int, number: int, keys: NDArray[np.uint64], more: Sequence[Sequence[NDArray[Any]]]
) -> None:
    keys = np.sort(keys)
    starts = _starts(keys)
    unique, times = keys[starts], np.diff(starts, append=len(keys))
    bounds = np.searchsorted(
        partition_of(unique, stages.num_partitions), np.arange(stages.num_partitions + 1)
    )
    blocks: list[Sequence[NDArray[Any]]] = []
    for begin, end in itertools.pairwise(bounds):
        several = np.flatnonzero(times[begin:end] > 1)
        blocks.append([unique[begin:end], several.astype("<u4"), times[begin:end][several].astype("<u4")])
    write_blocks(stages.path(f"keys-{level}", number), [*blocks, *more], num=len(blocks) + len(more))


def _read_windows(stages: Stages, number: int) -> tuple[Windows, Windows]:
    """Read the windows that repeat within a split, and of these the ones that stand earlier in it."""
    path = stages.path("keys-0", number)
    removed, later = (read_block(path, stages.num_partitions + i) for i in (0, 1))
    row, begin, end = (np.frombuffer(x, "<i8") for x in removed)
    if not later:
        return (row, begin, end), (row, begin, end)
    known = [np.frombuffer(x, "<i8") for x in later]
    return (row, begin, end), (known[0], known[1], known[2])


def _read_divided(stages: Stages, level: int) -> NDArray[np.uint64]:
    """Read the keys of levels up to this one that are divided, ascending."""
    if level < 0:
        return _NO_KEYS
    return read_arrays(stages.divided_path(level), 0, "<u8")[0].view(np.uint64)


def _starts(keys: NDArray[Any]) -> NDArray[np.intp]:
    """Where runs of equal keys begin."""
    return np.flatnonzero(np.append(np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]))

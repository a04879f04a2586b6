"""Near-duplicates of a corpus larger than memory, in stages over splits and partitions.

    work/signed/        hashes and band keys of every split (`signing`)
    work/RECIPE/
        parts.json              the splits, and the number of the first document of each
        candidates/PPPPP.blocks a partition's exact copies, and pairs that connect what shares a band
        members.blocks          a block a split: documents that resemble others, and who verifies them
        copies.blocks           a block a verifying task: exact copies of what it verifies
        direct.blocks           a block a split: exact copies of what resembles nothing else
        components.json         how many tasks verify; written after the three
        texts/SSSSS.blocks      a split's texts of such documents, a block a verifying task
        verdicts/VVVVV.blocks   what goes, and in favour of what; a block a split

Documents that share a band, directly or through others, are a component. What `dedup.near` decides about a
document depends on its component alone, so a task that calls it on whole components decides as one call on
the whole corpus would. Exact copies never get there: the preferred one stands for all.
"""

import itertools
from collections.abc import Sequence
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
from pylm.data.dedup.priorities import preference
from pylm.data.dedup.run import Progress, Run, run_dedup
from pylm.data.dedup.signing import (
    CorpusConfig,
    Part,
    Signing,
    check_unchanged,
    load_parts,
    match_hashes,
    read_partition,
)
from pylm.data.dedup.survivors import STEPS, remove_documents
from pylm.data.dedup.verdicts import (
    EXACT,
    NEAR,
    NUM_LARGEST,
    Verdicts,
    exact_verdicts,
    largest_clusters,
    write_verdicts,
)
from pylm.data.executors import Executor
from pylm.data.funnel import Tally
from pylm.text import dedup

NUM_BINS = 100
"""Of the histogram of similarities, from 0 to 1."""
Parents: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]

_LEAST_TASKS = 8
_ROWS_AT_ONCE = 1 << 22


class NearDedupConfig(CorpusConfig):
    """Which documents count as nearly the same."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of shingle sets from which one of two documents goes."""
    ngram: int = Field(default=5, ge=1, le=1 << 20)
    """Words, or characters, of a shingle."""
    unit: Literal["word", "char"] = "word"
    """What shingles are made of."""
    num_perm: int = Field(default=128, ge=2, le=1 << 20)
    """Numbers of a signature."""
    seed: int = Field(default=42, ge=0, lt=1 << 64)
    """Of the signatures."""
    verify_bytes: int = Field(default=512 << 20, ge=1)
    """Bytes of text from which a task that compares documents ends, at the next component."""

    @property
    def bands(self) -> tuple[int, int]:
        """Bands of a signature and rows of a band, as `dedup.near` chooses them."""
        return dedup.optimal_bands(self.threshold, self.num_perm, false_negative_weight=0.9)

    def signing(self, num_partitions: int, work: str) -> Signing:
        """Say how documents are hashed."""
        bands, rows = self.bands
        hasher = {"num_perm": self.num_perm, "ngram": self.ngram, "unit": self.unit, "seed": self.seed}
        return Signing(self, num_partitions, work, self.text_column, hasher=hasher, bands=bands, rows=rows)


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
        found = count_found(run.folder)
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


def find_near(run: Run, config: NearDedupConfig) -> list[str]:
    """Find what goes, through all stages but the last.

    Returns:
        Paths of the verdicts, files with a block a split.

    Raises:
        InputError: an input or a file of an earlier stage cannot be read.
    """
    folder, num_parts = run.folder, len(load_parts(run.parts_path))
    common: dict[str, Any] = {"folder": folder, "parts_path": run.parts_path, "num_keys": config.num_keys}
    candidates = [_file(folder, "candidates", i) for i in range(run.num_partitions)]
    run.stage("match", partial(_match, **common, num_partitions=run.num_partitions), candidates)
    connect = partial(_connect, **common, num_partitions=run.num_partitions, verify_bytes=config.verify_bytes)
    run.stage("connect", connect, [storage.join(folder, "components.json")])
    num_tasks = storage.read_json(storage.join(folder, "components.json"))["tasks"]
    gather = partial(_gather, **common, text_column=config.text_column, num_tasks=num_tasks)
    run.stage("gather", gather, [_file(folder, "texts", i) for i in range(num_parts)])
    verdicts = [_file(folder, "verdicts", i) for i in range(num_tasks)]
    run.stage("verify", partial(_verify, **common, config=config), [f"{path}.json" for path in verdicts])
    return [*verdicts, storage.join(folder, "direct.blocks")]


def count_found(folder: str) -> dict[str, Any]:
    """Add up what the tasks counted.

    Returns:
        `histogram`, removed documents by similarity in `NUM_BINS` bins; `largest`, clusters; `components`,
        `members` and `bytes` of what was compared, and `largest_component_bytes`.
    """
    found: dict[str, Any] = storage.read_json(storage.join(folder, "components.json"))
    histogram, largest = np.array(found["histogram"]), list(found["largest"])
    for number in range(found.pop("tasks")):
        counted = storage.read_json(f"{_file(folder, 'verdicts', number)}.json")
        histogram += counted["histogram"]
        largest += counted["largest"]
    largest.sort(key=lambda cluster: (-cluster["size"], cluster["kept"]))
    return {**found, "histogram": histogram.tolist(), "largest": largest[:NUM_LARGEST]}


def _file(folder: str, stage: str, number: int) -> str:
    return storage.join(folder, stage, f"{number:05d}.blocks")


def _match(partition: int, *, folder: str, parts_path: str, num_keys: int, num_partitions: int) -> None:
    """Find a partition's exact copies, and connect what shares the key of a band."""
    parts = load_parts(parts_path)
    copies, stays = match_hashes(parts, partition, num_keys)
    ids, (bands,) = read_partition(parts, num_partitions + partition, ["<u8", "<u4"])
    write_blocks(_file(folder, "candidates", partition), [[copies, stays], _span(bands, ids)], num=2)


def _span(keys: NDArray[np.uint64], ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Give the fewest pairs that connect documents as equal keys do: the least of a set, and each other."""
    order = np.argsort(keys)
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(keys), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    chosen = order[shared]  # equal keys in no order
    keys, ids = keys[chosen], ids[chosen]
    order = np.lexsort((ids, keys))
    keys, ids = keys[order], ids[order]
    nodes, index = np.unique(ids, return_inverse=True)
    parents = _singles(len(nodes))
    together = np.flatnonzero(keys[1:] == keys[:-1])
    _core.unite_pairs(parents, index[together].astype(np.int64), index[together + 1].astype(np.int64))
    _core.find_roots(parents)
    others = np.flatnonzero(parents != np.arange(len(nodes)))
    return [nodes[parents[others]], nodes[others]]


def _connect(
    _: int, *, folder: str, parts_path: str, num_keys: int, num_partitions: int, verify_bytes: int
) -> None:
    """Find the components of the whole corpus and share them out among the tasks that verify.

    In memory are 9 bytes a document (17 from 2^32 documents on), 16 a document that resembles others, and
    some 80 an exact copy.
    """
    parts = load_parts(parts_path)
    num_docs = sum(part.num_docs for part in parts)
    parents = _singles(num_docs)
    pairs = [np.zeros((2, 0), np.int64)]
    for path in (_file(folder, "candidates", i) for i in range(num_partitions)):
        pairs.append(np.stack(read_arrays(path, 0, "<i8", "<i8")))
        _core.unite_pairs(parents, *read_arrays(path, 1, "<i8", "<i8"))
    _core.find_roots(parents)
    copies, stays = np.concatenate(pairs, axis=1)
    del pairs
    is_copy = np.zeros(num_docs, bool)
    is_copy[copies] = True
    component_of, num_components = _number_components(parents, is_copy)
    members, sizes = [], np.zeros(num_components, np.int64)
    for part in parts:
        docs = slice(part.first, part.first + part.num_docs)
        component = component_of[parents[docs]]
        rows = np.flatnonzero((component >= 0) & ~is_copy[docs])
        members.append((rows.astype("<u4"), component[rows]))
        np.add.at(sizes, component[rows], _sizes_and_keys(part, num_keys)[0][rows])
    task_of, num_tasks = _share_out(sizes, verify_bytes)
    blocks = [[rows, task_of[component].astype("<u4")] for rows, component in members]
    write_blocks(storage.join(folder, "members.blocks"), blocks, num=len(parts))
    task_of = np.append(task_of, num_tasks)  # for component -1
    order, bounds = group(task_of[component_of[parents[stays]]], num_tasks + 1)
    copies, stays = copies[order], stays[order]
    blocks = [[copies[a:b], stays[a:b]] for a, b in itertools.pairwise(bounds[:-1])]
    write_blocks(storage.join(folder, "copies.blocks"), blocks, num=num_tasks)
    copies, stays = copies[bounds[-2] :], stays[bounds[-2] :]
    write_verdicts(storage.join(folder, "direct.blocks"), parts, exact_verdicts(copies, stays))
    found = {
        "tasks": num_tasks,
        "components": num_components,
        "members": sum(len(rows) for rows, _ in members),
        "bytes": int(sizes.sum()),
        "largest_component_bytes": int(sizes.max(initial=0)),
        "histogram": [0] * (NUM_BINS - 1) + [len(copies)],
        "largest": largest_clusters(copies, stays),
    }
    storage.write_json(storage.join(folder, "components.json"), found)


def _singles(size: int) -> Parents:
    """Sets of one item each, for `unite_pairs`."""
    return np.arange(size, dtype=np.uint32) if size < 1 << 32 else np.arange(size, dtype=np.uint64)


def _number_components(parents: Parents, is_copy: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """Number the components of two documents or more, exact copies not counted.

    Returns:
        For every root its component's number, -1 for other documents; and how many there are.
    """
    counts: NDArray[Any] = np.zeros(len(parents), np.int32 if parents.dtype == np.uint32 else np.int64)
    for begin in range(0, len(parents), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        np.add.at(counts, parents[rows][~is_copy[rows]], 1)
    roots = np.flatnonzero(counts >= 2)
    counts.fill(-1)
    counts[roots] = np.arange(len(roots))
    return counts, len(roots)


def _share_out(sizes: NDArray[np.int64], task_bytes: int) -> tuple[NDArray[np.int64], int]:
    """Give successive components to a task until it has enough bytes."""
    task_bytes = max(1, min(task_bytes, -(-int(sizes.sum()) // _LEAST_TASKS)))
    tasks, task_of = np.unique((np.cumsum(sizes) - sizes) // task_bytes, return_inverse=True)
    return task_of.astype(np.int64), len(tasks)


def _sizes_and_keys(part: Part, num_keys: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sizes, keys = read_arrays(part.blocks, -1, "<i8", "<i8")
    return sizes, keys.reshape(len(sizes), num_keys)


def _gather(
    number: int, *, folder: str, parts_path: str, num_keys: int, text_column: str, num_tasks: int
) -> None:
    """Put a split's texts that resemble others together for the tasks that verify them."""
    part = load_parts(parts_path)[number]
    rows, tasks = read_arrays(storage.join(folder, "members.blocks"), number, "<u4", "<u4")
    column = "text" if part.split.kind == "jsonl" else text_column
    wanted = rows.astype(np.int64)
    texts = [pa.array([], pa.large_string())]
    if len(wanted):
        check_unchanged(part.split)
        for first, batch in read_rows(part.path, part.start, part.stop, columns=[column], wanted=wanted):
            here = wanted[slice(*np.searchsorted(wanted, [first, first + len(batch)]))]
            texts.append(texts_of(batch, column).take(pa.array(here - first)))
        check_unchanged(part.split)
    keys = _sizes_and_keys(part, num_keys)[1][wanted]
    order, bounds = group(tasks, num_tasks)
    gathered = pa.concat_arrays(texts).take(pa.array(order))
    rows, keys = rows[order], keys[order]
    blocks = (
        [rows[a:b], keys[a:b], *_buffers_of(gathered.slice(a, b - a))] for a, b in itertools.pairwise(bounds)
    )
    write_blocks(_file(folder, "texts", number), blocks, num=num_tasks)


def _buffers_of(texts: pa.LargeStringArray) -> list[Any]:
    """Give offsets from 0 on, and the bytes."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return [bounds - bounds[0], data.slice(int(bounds[0]), int(bounds[-1] - bounds[0]))]


def _verify(number: int, *, folder: str, parts_path: str, num_keys: int, config: NearDedupConfig) -> None:
    """Decide about some components as `dedup.near` does."""
    parts = load_parts(parts_path)
    all_ids, all_keys = [np.zeros(0, np.int64)], [np.zeros((0, num_keys), np.int64)]
    texts = []
    for place, part in enumerate(parts):
        rows, keys, offsets, data = read_block(_file(folder, "texts", place), number, mapped=True)
        ids = np.frombuffer(rows, "<u4").astype(np.int64) + part.first
        if len(ids):
            all_ids.append(ids)
            all_keys.append(np.frombuffer(keys, "<i8").reshape(len(ids), num_keys))
            texts.append(pa.LargeStringArray.from_buffers(len(ids), offsets, data))
    ids, keys = np.concatenate(all_ids), np.concatenate(all_keys)
    bands, rows_a_band = config.bands
    found = dedup.near(
        pa.chunked_array(texts, pa.large_string()),
        threshold=config.threshold,
        num_perm=config.num_perm,
        ngram=config.ngram,
        unit=config.unit,
        seed=config.seed,
        priority=_ranks(keys, ids) if num_keys else None,
        bands=bands,
        rows=rows_a_band,
        num_threads=1,
    )
    similarity = np.ones(len(ids))
    similarity[found.pairs[:, 1]] = found.similarity
    removed = found.pairs[:, 1]
    near = Verdicts(
        ids[removed], ids[found.pairs[:, 0]], found.similarity, np.full(len(removed), NEAR, np.uint8)
    )
    copies, stays = read_arrays(storage.join(folder, "copies.blocks"), number, "<i8", "<i8")
    places = np.searchsorted(ids, stays)
    kept = ids[found.cluster[places]]
    exact = Verdicts(copies, kept, similarity[places], np.where(kept == stays, EXACT, NEAR).astype(np.uint8))
    verdicts = Verdicts(*(np.concatenate([one, other]) for one, other in zip(near, exact, strict=True)))
    out = _file(folder, "verdicts", number)
    write_verdicts(out, parts, verdicts)
    counted = {
        "histogram": np.histogram(verdicts.similarity, NUM_BINS, (0, 1))[0].tolist(),
        "largest": largest_clusters(verdicts.docs, verdicts.kept),
    }
    storage.write_json(f"{out}.json", counted)


def _ranks(keys: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number documents so that of two the one that is to stay has the larger number."""
    ranks = np.empty(len(ids), np.int64)
    ranks[preference(keys, ids)] = np.arange(len(ids), 0, -1)
    return ranks

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
        seen/VVVVV.blocks       with an index: its documents that stand for others, and for how many

Documents that share a band, directly or through others, are a component. What `dedup.near` decides about a
document depends on its component alone, so a task that calls it on whole components decides as one call on
the whole corpus would. Exact copies never get there: the preferred one stands for all.

With an index of earlier crawls, documents that share a band with it get there as well, alone or not, and
`NearIndex.deduplicate` decides. What it says of a text depends on the index and on texts of its component
alone: a text that joins a document of the index leaves that document in its own buckets only.
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
from pylm.data.dedup.adding import report_index
from pylm.data.dedup.blocks import group, read_arrays, write_blocks
from pylm.data.dedup.gathering import gather, ranks_of, read_gathered, sizes_and_keys, stage_file
from pylm.data.dedup.indexed import IndexedConfig, Known, Wanted, absolute, check_index, open_near
from pylm.data.dedup.run import Progress, Run, run_dedup
from pylm.data.dedup.signing import Signing, load_parts, match_hashes, read_partition
from pylm.data.dedup.survivors import STEPS, remove_documents
from pylm.data.dedup.verdicts import (
    EXACT,
    INDEXED,
    NEAR,
    NUM_LARGEST,
    NUM_SHOWN,
    Verdicts,
    count_clusters,
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
_KEYS_AT_ONCE = 1 << 20
_OPTIONS = {x: x.replace("_", "-") for x in ("threshold", "ngram", "unit", "num_perm", "seed")}


class NearDedupConfig(IndexedConfig):
    """Which documents count as nearly the same."""

    layout = (*IndexedConfig.layout, "verify_bytes")
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
    index_bits: Literal[0, 32, 64] | None = None
    """Bits of a shingle that a new index keeps, as `shingle_bits` of `dedup.NearIndex`; None for 64, or for
    what is there."""
    verify_bytes: int = Field(default=512 << 20, ge=1)
    """Bytes of text from which a task that compares documents ends, at the next component."""

    @property
    def bands(self) -> tuple[int, int]:
        """Bands of a signature and rows of a band, as `dedup.near` chooses them."""
        return dedup.optimal_bands(self.threshold, self.num_perm, false_negative_weight=0.9)

    def wanted(self, *, dry_run: bool) -> Wanted | None:
        """Say which index takes part."""
        if not self.index:
            return None
        folder = absolute(self.index)
        bands, rows = self.bands
        options: dict[str, Any] = {
            "threshold": self.threshold,
            "ngram": self.ngram,
            "unit": self.unit,
            "num_perm": self.num_perm,
            "seed": self.seed,
        }
        choices: dict[str, Any] = {"bands": bands, "rows": rows, "scheme": "fast", "bits": 32}
        bits = 64 if self.index_bits is None else self.index_bits
        create = partial(dedup.NearIndex.create, folder, **options, **choices, shingle_bits=bits)
        given = {} if self.index_bits is None else {"shingle_bits": bits}
        names = _OPTIONS | {"shingle_bits": "index-bits"}
        adds = self.index_add and not dry_run
        return Wanted(folder, "near", adds, {**options, **choices, **given}, names, create)

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

    With `config.index`, as `NearIndex.deduplicate` would with all texts at once; after that all texts are
    added as one call of `NearIndex.add` would, with the numbers of the texts behind those that were given
    to it before as ids. A corpus is added once, however often this is cut off and called again.

    Args:
        inputs: files, folders or globs of Parquet and JSON lines (.jsonl, .gz, .zst), local or URLs. Copies
            are preferred in this order.
        out: folder for the result: empty, or with a result of this function.
        config: the recipe.
        execute: does the work of a stage's items; None for the cores of this machine, or for this process
            where the input is small.
        progress: called with a stage, finished and all of its items.
        dry_run: find duplicates and report, but write no survivors.
        keep_work: keep the files of the stages, so that a call with more inputs signs only those.

    Returns:
        What report.json says.

    Raises:
        InputError: an input cannot be used, `out` holds something else or is in use, a file of a stage is
            damaged, the index has other parameters, or has these inputs already from another run.
        OSError: the disk is full, or `out` cannot be written.
    """

    def work(run: Run, tally: Tally) -> tuple[Sequence[str], dict[str, Any]]:
        settled = config.model_copy(update=run.layout)
        verdicts = find_near(run, settled)
        found = count_found(run.folder, with_index=run.known is not None)
        clusters, histogram = found.pop("largest"), found.pop("histogram")
        removed = remove_documents(run, tally, verdicts, clusters, dry_run=dry_run)
        bins = [
            {"from": i / NUM_BINS, "to": (i + 1) / NUM_BINS, "documents": count}
            for i, count in enumerate(histogram)
            if count
        ]
        more = {} if wanted is None else {"index": report_index(run, settled, wanted)}
        steps = STEPS if run.known is not None else STEPS[:INDEXED]
        return steps, {**removed, "similarities": bins, "compared": found, **more}

    config = config.placed()
    wanted = config.wanted(dry_run=dry_run)
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
        wanted=wanted,
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
    known, partitions = run.known, run.num_partitions
    if known is not None:
        checked = storage.join(folder, "checked.json")
        run.stage("check the index", partial(check_index, known=known, done=checked), [checked])
    candidates = [stage_file(folder, "candidates", i) for i in range(run.num_partitions)]
    run.stage("match", partial(_match, **common, num_partitions=partitions, known=known), candidates)
    connect = partial(
        _connect,
        **common,
        num_partitions=partitions,
        verify_bytes=config.verify_bytes,
        has_index=known is not None,
    )
    run.stage("connect", connect, [storage.join(folder, "components.json")])
    num_tasks = storage.read_json(storage.join(folder, "components.json"))["tasks"]
    members = {"text_column": config.text_column, "num_tasks": num_tasks, "members": "members.blocks"}
    gather_texts = partial(gather, **common, **members, stage="texts")
    run.stage("gather", gather_texts, [stage_file(folder, "texts", i) for i in range(num_parts)])
    verdicts = [stage_file(folder, "verdicts", i) for i in range(num_tasks)]
    verify = partial(_verify, **common, config=config, known=known)
    run.stage("verify", verify, [f"{path}.json" for path in verdicts])
    return [*verdicts, storage.join(folder, "direct.blocks")]


def count_found(folder: str, *, with_index: bool = False) -> dict[str, Any]:
    """Add up what the tasks counted.

    Returns:
        `histogram`, removed documents by similarity in `NUM_BINS` bins; `largest`, clusters; `components`,
        `members` and `bytes` of what was compared, and `largest_component_bytes`.
    """
    found: dict[str, Any] = storage.read_json(storage.join(folder, "components.json"))
    histogram, largest = np.array(found["histogram"]), list(found["largest"])
    num_tasks = found.pop("tasks")
    for number in range(num_tasks):
        counted = storage.read_json(f"{stage_file(folder, 'verdicts', number)}.json")
        histogram += counted["histogram"]
        largest += counted["largest"]
    if with_index:
        largest += _largest_seen([stage_file(folder, "seen", number) for number in range(num_tasks)])
    largest.sort(key=lambda x: (-x["size"], x.get("indexed", False), x["kept"]))
    return {**found, "histogram": histogram.tolist(), "largest": largest[:NUM_LARGEST]}


def _largest_seen(paths: Sequence[str]) -> list[dict[str, Any]]:
    """List the documents of an index that stand for most others; several tasks may have found one."""
    columns: list[list[NDArray[np.int64]]] = [[np.zeros(0, np.int64)] for _ in range(3)]
    for path in paths:
        for gathered, array in zip(columns, read_arrays(path, 0, *["<i8"] * 3), strict=True):
            gathered.append(array)
    kept, counts, shown = (np.concatenate(column) for column in columns)
    documents, index = np.unique(kept, return_inverse=True)
    sizes = np.zeros(len(documents), np.int64)
    np.add.at(sizes, index, counts)
    largest = []
    for place in np.lexsort((documents, -sizes))[:NUM_LARGEST]:
        removed = shown.reshape(-1, NUM_SHOWN)[index == place].ravel()
        first = np.sort(removed[removed >= 0])[:NUM_SHOWN].tolist()
        size = int(sizes[place]) + 1
        largest.append({"kept": int(documents[place]), "size": size, "removed": first, "indexed": True})
    return largest


def _match(
    partition: int,
    *,
    folder: str,
    parts_path: str,
    num_keys: int,
    num_partitions: int,
    known: Known | None,
) -> None:
    """Find a partition's exact copies, connect what shares the key of a band, and find what an index has."""
    parts = load_parts(parts_path)
    copies, stays = match_hashes(parts, partition, num_keys)
    ids, (bands,) = read_partition(parts, num_partitions + partition, ["<u8", "<u4"])
    blocks = [[copies, stays], _span(bands, ids)]
    if known is not None:
        blocks.append([_find_seen(bands, ids, known)])
    write_blocks(stage_file(folder, "candidates", partition), blocks, num=len(blocks))


def _find_seen(keys: NDArray[np.uint64], ids: NDArray[np.int64], known: Known) -> NDArray[np.int64]:
    """Find the documents with a key that an index has; those that equal one of its texts are among them."""
    index = open_near(known)
    ordered, which = np.unique(keys, return_inverse=True)
    is_seen = np.zeros(len(ordered), bool)
    for begin in range(0, len(ordered), _KEYS_AT_ONCE):
        is_seen[begin + index.find_keys(ordered[begin : begin + _KEYS_AT_ONCE])[0]] = True
    return np.unique(ids[is_seen[which]])


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
    _: int,
    *,
    folder: str,
    parts_path: str,
    num_keys: int,
    num_partitions: int,
    verify_bytes: int,
    has_index: bool,
) -> None:
    """Find the components of the whole corpus and share them out among the tasks that verify.

    In memory are 9 bytes a document (17 from 2^32 documents on; 2 more with an index), 16 a document that
    resembles others, and some 80 an exact copy.
    """
    parts = load_parts(parts_path)
    num_docs = sum(part.num_docs for part in parts)
    parents = _singles(num_docs)
    pairs = [np.zeros((2, 0), np.int64)]
    is_seen = np.zeros(num_docs if has_index else 0, bool)
    for path in (stage_file(folder, "candidates", i) for i in range(num_partitions)):
        pairs.append(np.stack(read_arrays(path, 0, "<i8", "<i8")))
        _core.unite_pairs(parents, *read_arrays(path, 1, "<i8", "<i8"))
        if has_index:
            is_seen[read_arrays(path, 2, "<i8")[0]] = True
    _core.find_roots(parents)
    copies, stays = np.concatenate(pairs, axis=1)
    del pairs
    is_copy = np.zeros(num_docs, bool)
    is_copy[copies] = True
    component_of, num_components = _number_components(parents, is_copy, is_seen)
    members, sizes = [], np.zeros(num_components, np.int64)
    for part in parts:
        docs = slice(part.first, part.first + part.num_docs)
        component = component_of[parents[docs]]
        rows = np.flatnonzero((component >= 0) & ~is_copy[docs])
        members.append((rows.astype("<u4"), component[rows]))
        np.add.at(sizes, component[rows], sizes_and_keys(part, num_keys)[0][rows])
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


def _number_components(
    parents: Parents, is_copy: NDArray[np.bool_], is_seen: NDArray[np.bool_]
) -> tuple[NDArray[Any], int]:
    """Number the components of two documents or more, exact copies not counted, or with one that was seen.

    Returns:
        For every root its component's number, -1 for other documents; and how many there are.
    """
    counts: NDArray[Any] = np.zeros(len(parents), np.int32 if parents.dtype == np.uint32 else np.int64)
    for begin in range(0, len(parents), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        np.add.at(counts, parents[rows][~is_copy[rows]], 1)
    is_compared = counts >= 2
    if len(is_seen):
        is_compared[parents[is_seen & ~is_copy]] = True
    roots = np.flatnonzero(is_compared)
    counts.fill(-1)
    counts[roots] = np.arange(len(roots))
    return counts, len(roots)


def _share_out(sizes: NDArray[np.int64], task_bytes: int) -> tuple[NDArray[np.int64], int]:
    """Give successive components to a task until it has enough bytes."""
    task_bytes = max(1, min(task_bytes, -(-int(sizes.sum()) // _LEAST_TASKS)))
    tasks, task_of = np.unique((np.cumsum(sizes) - sizes) // task_bytes, return_inverse=True)
    return task_of.astype(np.int64), len(tasks)


def _verify(
    number: int,
    *,
    folder: str,
    parts_path: str,
    num_keys: int,
    config: NearDedupConfig,
    known: Known | None,
) -> None:
    """Decide about some components as `dedup.near`, or the index, does."""
    parts = load_parts(parts_path)
    ids, keys, texts = read_gathered(
        number, folder=folder, parts_path=parts_path, num_keys=num_keys, stage="texts"
    )
    priority = ranks_of(keys, ids) if num_keys else None
    kept, similarity, is_known = _compare(texts, ids, priority, config, known)
    removed = np.flatnonzero(is_known | (kept != ids))
    why = np.where(is_known[removed], INDEXED, NEAR).astype(np.uint8)
    near = Verdicts(ids[removed], kept[removed], similarity[removed], why)
    copies, stays = read_arrays(storage.join(folder, "copies.blocks"), number, "<i8", "<i8")
    places = np.searchsorted(ids, stays)
    why = np.where(kept[places] == stays, EXACT, NEAR)
    why = np.where(is_known[places], INDEXED, why).astype(np.uint8)
    exact = Verdicts(copies, kept[places], similarity[places], why)
    verdicts = Verdicts(*(np.concatenate([one, other]) for one, other in zip(near, exact, strict=True)))
    out = stage_file(folder, "verdicts", number)
    write_verdicts(out, parts, verdicts)
    is_indexed = verdicts.reason == INDEXED
    if known is not None:
        seen = count_clusters(verdicts.docs[is_indexed], verdicts.kept[is_indexed])
        write_blocks(stage_file(folder, "seen", number), [[*seen[:2], seen[2].ravel()]], num=1)
    counted = {
        "histogram": np.histogram(verdicts.similarity, NUM_BINS, (0, 1))[0].tolist(),
        "largest": largest_clusters(verdicts.docs[~is_indexed], verdicts.kept[~is_indexed]),
    }
    storage.write_json(f"{out}.json", counted)


def _compare(
    texts: pa.ChunkedArray,
    ids: NDArray[np.int64],
    priority: NDArray[np.int64] | None,
    config: NearDedupConfig,
    known: Known | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Give what stands for every text, the similarity, and whether that is a document of the index."""
    if known is not None:
        seen = open_near(known).deduplicate(texts, priority=priority, num_threads=1)
        is_known = seen.document >= 0
        return np.where(is_known, seen.document, ids[seen.cluster]), seen.similarity, is_known
    bands, rows = config.bands
    found = dedup.near(
        texts,
        threshold=config.threshold,
        num_perm=config.num_perm,
        ngram=config.ngram,
        unit=config.unit,
        seed=config.seed,
        priority=priority,
        bands=bands,
        rows=rows,
        num_threads=1,
    )
    similarity = np.ones(len(ids))
    similarity[found.pairs[:, 1]] = found.similarity
    return ids[found.cluster], similarity, np.zeros(len(ids), bool)

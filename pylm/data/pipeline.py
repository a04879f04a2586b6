"""Preparation: from sources to training and held-out documents, with every drop counted.

    prepare/
        parts/SOURCE-KEY.parquet .json   one split each: documents that passed the local steps, and its counts
        train.parquet heldout.parquet   documents
        funnel.json   steps and drops       dropped.jsonl   samples of what was dropped, by reason

A split is some files of one source, or a part of a big one. It goes through all local steps (read, filter) in
one process and is published as a whole under a name that says what it was made of; so a finished split is
never redone, one of another recipe is never taken for it, and the result does not depend on the number of
workers. Global steps (duplicates, held-out choice, overlap) follow over all parts, which they hold in memory.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from pylm.config import Config
from pylm.data import filters, readers
from pylm.data.acquire import python_stdlib
from pylm.data.decontaminate import OverlapConfig, find_overlaps
from pylm.data.documents import (
    SCHEMA,
    Piece,
    SourceConfig,
    cut_file,
    group_of,
    keyed_fraction,
    list_files,
)
from pylm.data.duplicates import DedupConfig, find_duplicates
from pylm.data.executors import run_local
from pylm.data.funnel import Funnel, FunnelStep, Tally
from pylm.errors import InputError
from pylm.files import atomic_path, read_json, write_json

SPLIT_BYTES = 8 << 20
PART_FORMAT = 1
"""Raised when the local steps give other parts for the same input, so that older parts are redone."""


class PrepareConfig(Config):
    """Sources and what is done to their documents."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where documents come from, in order: of duplicates, the first source's stays."""
    dedup: DedupConfig = Field(default_factory=DedupConfig)
    """Removal of copies over all sources."""
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of groups of documents that no training sees."""
    overlap: OverlapConfig = Field(default_factory=OverlapConfig)
    """Removal of training documents that repeat held-out text."""

    def input_files(self) -> list[Path]:
        """List the files that the sources name, for the fingerprint of the stage."""
        return [path for source in self.sources for path in _files_of(source)]


@dataclass(frozen=True)
class _Split:
    source: SourceConfig
    pieces: tuple[Piece, ...]
    states: tuple[tuple[int, int], ...]
    """Bytes and time of change of each piece's file."""

    @functools.cached_property
    def name(self) -> str:
        """The part's name: a hash of all that its content depends on."""
        config = self.source.model_dump_json(exclude={"max_bad_fraction"})
        content = repr((PART_FORMAT, config, self.pieces, self.states))
        return f"{self.source.name}-{xxhash.xxh3_128_hexdigest(content.encode('utf-8', 'surrogateescape'))}"


def prepare(
    config: PrepareConfig,
    out: Path,
    *,
    seed: int,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Funnel:
    """Read, filter, deduplicate and split documents.

    Args:
        config: the recipe's part.
        out: folder of the stage; finished splits in it are kept.
        seed: decides the held-out groups.
        num_workers: processes; 0 takes all cores. The files do not depend on it.
        progress: called with finished and all splits: once at the start, then after each.

    Returns:
        The counts that funnel.json holds.

    Raises:
        InputError: a source that cannot be used, or no documents left to train on.
    """
    splits = _list_splits(config)
    parts = out / "parts"
    tally = Tally()
    num_read, size_read = _run_splits(splits, parts, tally, num_workers=num_workers, progress=progress)
    documents = pa.concat_tables([_read_part(parts / f"{split.name}.parquet") for split in splits])
    if num_read == 0:
        raise InputError("the sources hold no documents; check prepare.sources")
    steps = [FunnelStep("read", num_read, size_read)]

    def left(name: str, table: pa.Table) -> pa.Table:
        steps.append(FunnelStep(name, len(table), _size(table)))
        return table

    left("filter", documents)
    _require(documents, "every document was set aside or dropped by the filters", out, tally)
    found = find_duplicates(documents["text"], config.dedup, num_threads=num_workers)
    # A document is never marked by both, so each mask may be cut down by the steps before it.
    masks = {"exact duplicates": found.exact, "near duplicates": found.near[~found.exact]}
    for step, dropped in masks.items():
        documents = left(step, _drop(documents, dropped, step, tally))
    is_heldout = _choose_heldout(documents, config.heldout_fraction, seed)
    heldout = documents.filter(pa.array(is_heldout))
    training = left("held out", _drop(documents, is_heldout, "held out", tally))
    overlapping = find_overlaps(_texts(training), heldout["text"].to_pylist(), config.overlap)
    training = left("held-out overlap", _drop(training, overlapping, "held-out overlap", tally))
    _require(training, "no documents are left to train on", out, tally)
    for name, table in (("train", training), ("heldout", heldout)):
        with atomic_path(out / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=4096)
    _write_samples(out, tally)
    funnel = Funnel(tuple(steps), tally.drops())
    write_json(out / "funnel.json", funnel.to_dict())
    _remove_others(splits, parts)
    return funnel


def _require(table: pa.Table, message: str, out: Path, tally: Tally) -> None:
    if len(table) == 0:
        _write_samples(out, tally)
        raise InputError(f"{message}; {out / 'dropped.jsonl'} shows samples by reason")


def _write_samples(out: Path, tally: Tally) -> None:
    with atomic_path(out / "dropped.jsonl") as temporary:
        lines = (json.dumps(sample, ensure_ascii=False) for sample in tally.sample_rows())
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _files_of(source: SourceConfig) -> list[Path]:
    if source.kind in ("python-source", "python-docs"):
        return python_stdlib.list_files(source)
    return list_files(source)


def _list_splits(config: PrepareConfig) -> list[_Split]:
    """Cut the sources into splits of about equal size, in a fixed order."""
    names = [source.name for source in config.sources]
    if len(set(names)) != len(names):
        raise InputError(f"prepare.sources must have different names, got {', '.join(names)}")
    splits: list[_Split] = []
    for source in config.sources:
        pieces: list[Piece] = []
        states: list[tuple[int, int]] = []
        waiting = 0
        for path in _files_of(source):
            status = path.stat()
            for piece, size in cut_file(source.kind, path, SPLIT_BYTES):
                pieces.append(piece)
                states.append((status.st_size, status.st_mtime_ns))
                waiting += size
                if waiting >= SPLIT_BYTES:
                    splits.append(_Split(source, tuple(pieces), tuple(states)))
                    pieces, states, waiting = [], [], 0
        if pieces:
            splits.append(_Split(source, tuple(pieces), tuple(states)))
    return splits


def _run_splits(
    splits: Sequence[_Split],
    parts: Path,
    tally: Tally,
    *,
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, int]:
    """Bring all splits up to date and add up their counts; give documents and bytes that were read."""
    parts.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(parts)
    waiting = [split for split in splits if not _is_finished(split, parts)]
    done = len(splits) - len(waiting)
    results = run_local(functools.partial(_run_split, parts=parts), waiting, num_workers=num_workers)
    unfinished = set(waiting)
    num_read, size_read = 0, 0
    shares: dict[str, _BadRows] = {}
    try:
        if progress is not None:
            progress(done, len(splits))
        for number, split in enumerate(splits):
            if split in unfinished:
                next(results)
                done += 1
                if progress is not None:
                    progress(done, len(splits))
            saved = read_json(parts / f"{split.name}.json")
            tally.merge(saved["tally"])
            num_read, size_read = num_read + saved["documents"], size_read + saved["bytes"]
            is_last = number + 1 == len(splits) or splits[number + 1].source is not split.source
            share = shares.setdefault(split.source.name, _BadRows(split.source))
            share.check(saved["documents"], tally, is_last=is_last)
    finally:
        results.close()
        _remove_unfinished(parts)
    return num_read, size_read


@dataclass
class _BadRows:
    """Refuses a source of which too many rows were set aside."""

    source: SourceConfig
    num_rows: int = 0

    def check(self, num_rows: int, tally: Tally, *, is_last: bool) -> None:
        """Count some rows more; judge at the end, or where not one row has been a document."""
        self.num_rows += num_rows
        source = self.source
        bad = [key for key in tally.documents if key[0] == "read" and key[2] == source.name]
        num_bad = sum(tally.documents[key] for key in bad)
        hopeless = num_bad == self.num_rows and source.max_bad_fraction < 1
        if source.kind not in ("jsonl", "parquet") or not (is_last or hopeless):
            return
        if num_bad > source.max_bad_fraction * self.num_rows:
            reason = min(bad, key=lambda key: -tally.documents[key])[1]
            place, shown = tally.samples["read", reason, source.name][0]
            expected = readers.EXPECTED[reason].format(field=source.text_field)
            raise InputError(
                f"{readers.line_of(place)}: {expected}, got {shown!r} ({num_bad} of {self.num_rows} rows of "
                f"source {source.name} are bad; max_bad_fraction={source.max_bad_fraction:g} sets such aside)"
            )


def _remove_unfinished(parts: Path) -> None:
    """Remove what killed workers left."""
    for path in parts.glob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def _remove_others(splits: Sequence[_Split], parts: Path) -> None:
    """Remove parts of other recipes or of files that have changed."""
    names = {split.name for split in splits}
    for path in parts.iterdir():
        if path.stem not in names:
            path.unlink()


def _is_finished(split: _Split, parts: Path) -> bool:
    return all((parts / f"{split.name}.{x}").exists() for x in ("json", "parquet"))


def _read_part(path: Path) -> pa.Table:
    # ParquetFile, since read_table would take a folder above named `lr=0.1` for a column.
    with pq.ParquetFile(path) as file:
        return file.read()


def _run_split(split: _Split, parts: Path) -> None:
    """Take one split through all local steps and publish it; the statistics come last and say it is done."""
    tally = Tally()
    num_documents, size = 0, 0
    source = split.source
    with (
        atomic_path(parts / f"{split.name}.parquet") as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for batch in _read(source, split.pieces):
            for row in batch.bad_rows:
                key = ("read", row.reason, source.name)
                tally.add(key, size_bytes=row.size_bytes, place=row.place, text=row.shown)
            num_documents += len(batch.documents) + len(batch.bad_rows)
            size += _size(batch.documents) + sum(row.size_bytes for row in batch.bad_rows)
            reasons = filters.drop_reasons(batch.documents, source.filters)
            dropped = batch.documents.filter(pc.is_valid(reasons))
            tally.add_documents("filter", reasons.drop_null().to_pylist(), dropped)
            writer.write_batch(batch.documents.filter(pc.is_null(reasons)))
    counts = {"documents": num_documents, "bytes": size, "tally": tally.to_dict()}
    write_json(parts / f"{split.name}.json", counts)


def _read(source: SourceConfig, pieces: Sequence[Piece]) -> Iterator[readers.Batch]:
    if source.kind == "python-docs":
        return python_stdlib.read_docs(source, pieces)
    if source.kind == "python-source":
        return python_stdlib.read_source(source, pieces)
    return readers.read_pieces(source, pieces)


def _size(table: pa.Table | pa.RecordBatch) -> int:
    return int(pc.sum(pc.binary_length(table["text"])).as_py() or 0)


def _texts(table: pa.Table) -> Iterable[str]:
    for batch in table.select(["text"]).to_batches(max_chunksize=1024):
        yield from batch["text"].to_pylist()


def _drop(table: pa.Table, is_dropped: NDArray[np.bool_], step: str, tally: Tally) -> pa.Table:
    """Count and remove rows; give the rest."""
    dropped = table.filter(pa.array(is_dropped))
    tally.add_documents(step, [step] * len(dropped), dropped)
    return table.filter(pa.array(~is_dropped))


def _choose_heldout(table: pa.Table, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose groups by a keyed hash of their names: whatever else is in the corpus, a group's side stays."""
    ids, metas = table["id"].to_pylist(), table["meta"].to_pylist()
    chosen = (
        keyed_fraction(group_of(doc_id, meta), seed) < fraction
        for doc_id, meta in zip(ids, metas, strict=True)
    )
    return np.fromiter(chosen, dtype=np.bool_, count=len(ids))

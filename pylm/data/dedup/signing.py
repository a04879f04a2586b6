"""The first stage of deduplication: hashes and keys of a split's documents, for the tasks that compare them.

    signed/NAME-NNNNN.blocks   of a part: P blocks of hashes, P of band keys (none for copies), one of sizes
                               and priorities
    signed/NAME.json           counts; written last, and says that the split is done
    copied/NAME-NNNNN.parquet  documents of JSON lines, and of row groups that are cut

A split is one part, but for lines that are compressed or in a store, and for row groups that are cut: a part
of these ends where its texts are as large as a split. P is the number of partitions: equal hashes and equal
keys meet in the same one. A name covers all that a file depends on, so that other inputs or another threshold
keep what they share.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pylm.config import Config
from pylm.data import storage
from pylm.data.dedup.blocks import group, read_arrays, write_blocks
from pylm.data.dedup.corpus import (
    SPLIT_BYTES,
    Split,
    copy_documents,
    read_rows,
    state_of,
    text_sizes,
    texts_of,
)
from pylm.data.dedup.priorities import (
    Priority,
    fields_of,
    parse_priority,
    preference,
    priority_keys,
    values_of,
)
from pylm.data.funnel import Tally
from pylm.errors import InputError
from pylm.text import dedup

FORMAT = 3
"""Raised when a stage gives other files for the same input, so that older ones are redone."""


class CorpusConfig(Config):
    """What every deduplication of a corpus in files is told."""

    layout: ClassVar[tuple[str, ...]] = ("num_partitions",)
    """Fields that decide the files of the stages, and nothing of the result."""
    allowed: ClassVar[tuple[str, ...]] = ("max_bad_fraction",)
    """Fields that decide whether there is a result."""

    cuts_groups: ClassVar[bool] = False
    """Whether tasks hold all texts of a split in memory, so that large row groups are cut."""

    text_column: str = "text"
    """Column of Parquet, or field of JSON lines, that holds the text."""
    keep: Literal["first", "longest"] = "first"
    """Which of several copies stays where no priority decides: the first in the order of the inputs, or the
    longest in bytes (the first of those)."""
    priority: tuple[str, ...] = ()
    """Rules that decide before `keep`, the first before the second: `COLUMN` (the largest number or latest
    date stays), `-COLUMN` (the least), `COLUMN=a,b,c` (a before b before c before others)."""
    split_bytes: int = Field(default=SPLIT_BYTES, ge=1)
    """Size on disk from which a split ends. Files of survivors are one a split."""
    num_partitions: int = Field(default=0, ge=0, le=1 << 16)
    """Parts that hashes and keys are sorted in; 0 takes one for about 2 GiB of input on disk, at least 8. It
    decides the memory of a task, not the result."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of JSON lines of an input that may be no documents; above it the input is refused."""

    @property
    def rules(self) -> tuple[Priority, ...]:
        """The rules of `priority`, taken apart."""
        return tuple(parse_priority(rule) for rule in self.priority)

    @property
    def num_keys(self) -> int:
        """Numbers that decide which copy stays."""
        return len(self.priority) + (self.keep == "longest")

    def signing(self, num_partitions: int, work: str) -> "Signing":
        """Say how documents are hashed."""
        return Signing(self, num_partitions, work, self.text_column)

    def columns(self) -> list[str]:
        """List the columns that are read, that of the texts first."""
        return [self.text_column, *(rule.column for rule in self.rules)]


@dataclass(frozen=True)
class Signing:
    """How documents are hashed.

    Attributes:
        config: of the corpus.
        num_partitions: P.
        work: folder of the stages' files.
        column: that is compared.
        exact: options of `hash_texts`.
        hasher: options of `MinHasher`; empty for exact copies alone.
        bands: of a signature.
        rows: of a band.
    """

    config: CorpusConfig
    num_partitions: int
    work: str
    column: str
    exact: dict[str, Any] = field(default_factory=dict)
    hasher: dict[str, Any] = field(default_factory=dict)
    bands: int = 0
    rows: int = 0

    def name(self, split: Split) -> str:
        """Give the name of a split's files."""
        config = self.config
        recipe = [FORMAT, config.text_column, config.keep, config.priority, self.num_partitions, self.column]
        return split.name([*recipe, self.exact, self.hasher, self.bands, self.rows])

    def done(self, split: Split) -> str:
        """Give the path of the file that says that a split is done."""
        return storage.join(self.work, "signed", f"{self.name(split)}.json")

    def blocks(self, split: Split, part: int) -> str:
        """Give the path of the blocks of a split's part."""
        return storage.join(self.work, "signed", f"{self.name(split)}-{part:05d}.blocks")

    def documents(self, split: Split, part: int) -> str:
        """Give the path of the Parquet file that holds the documents of a split's part."""
        if not split.is_copied:
            return split.path
        name = split.name([FORMAT, self.config.text_column])
        return storage.join(self.work, "copied", f"{name}-{part:05d}.parquet")


def hash_record(num_keys: int) -> list[str]:
    """Types of a block of hashes: the two halves, the row, and what decides which copy stays."""
    return ["<u8", "<u8", "<u4"] + ["<i8"] * (num_keys > 0)


def check_unchanged(split: Split) -> None:
    """Refuse a file that has changed since the run began.

    Raises:
        InputError: it has.
    """
    if state_of(split.path) != split.state:
        raise InputError(f"{split.path}: changed while it was read; run the same command again")


def sign(split: Split, signing: Signing) -> None:
    """Hash a split's documents and write their blocks."""
    check_unchanged(split)
    rules, tally, num_parts = signing.config.rules, Tally(), 1
    if split.is_copied:
        path_of = partial(signing.documents, split)
        num_parts = copy_documents(split, signing.config.text_column, path_of, tally)
    kinds: list[set[str]] = [set() for _ in rules]
    values: list[set[str]] = [set() for _ in rules]
    parts = [_sign_part(split, part, signing, kinds, values) for part in range(num_parts)]
    check_unchanged(split)
    counts = {
        "parts": parts,
        "kinds": [_one_kind(rule, seen, split.path) for rule, seen in zip(rules, kinds, strict=True)],
        "values": [sorted(seen) for seen in values],
        "tally": tally.to_dict(),
    }
    storage.write_json(signing.done(split), counts)


def _sign_part(
    split: Split, part: int, signing: Signing, kinds: Sequence[set[str]], values: Sequence[set[str]]
) -> dict[str, int]:
    """Hash a part's documents, write their blocks, and count.

    Args:
        split: that was signed up to the part.
        part: its number.
        signing: how.
        kinds: get those of each rule's numbers.
        values: get those of each rule's order that occur.
    """
    config, rules = signing.config, signing.config.rules
    start, stop = (0, None) if split.is_copied else (split.start, split.stop)
    hasher = dedup.MinHasher(**signing.hasher) if signing.hasher else None
    columns = None if split.kind == "jsonl" else [*config.columns(), signing.column]
    text_column = "text" if split.kind == "jsonl" else config.text_column
    column = text_column if signing.column == config.text_column else signing.column
    found: list[tuple[NDArray[Any], ...]] = []
    for _, batch in read_rows(signing.documents(split, part), start, stop, columns=columns):
        compared = _compared(batch, column, split)
        hashes, present = dedup.hash_texts(compared, **signing.exact, num_threads=1)
        bands = np.zeros((len(batch), 0), np.uint64)
        if hasher is not None:
            bands, present = hasher.band_keys(compared, bands=signing.bands, rows=signing.rows, num_threads=1)
        sizes = text_sizes(texts_of(batch, text_column))
        preferred = np.zeros((len(batch), config.num_keys), np.int64)
        for number, rule in enumerate(rules):
            preferred[:, number], kind = priority_keys(rule, batch, split.path)
            kinds[number].update([kind] if kind is not None else [])
            values[number].update(values_of(rule, preferred[:, number]))
        if config.num_keys > len(rules):
            preferred[:, -1] = sizes
        found.append((hashes, bands, present, sizes, preferred))
    shapes = [
        ((0, 2), "<u8"),
        ((0, signing.bands), "<u8"),
        ((0,), "?"),
        ((0,), "<i8"),
        ((0, config.num_keys), "<i8"),
    ]
    empty = tuple(np.zeros(shape, dtype) for shape, dtype in shapes)
    hashes, bands, present, sizes, keys = (np.concatenate(x) for x in zip(empty, *found, strict=True))
    blocks = _group_hashes(hashes, present, keys, signing.num_partitions)
    if hasher is not None:
        blocks += _group_bands(hashes, bands, present, keys, signing.num_partitions)
    blocks.append([sizes, keys])
    write_blocks(signing.blocks(split, part), blocks, num=len(blocks))
    return {"documents": len(sizes), "bytes": int(sizes.sum()), "compared": int(present.sum())}


def _compared(batch: pa.RecordBatch, column: str, split: Split) -> pa.LargeStringArray:
    if split.kind == "jsonl" and column != "text":
        fields = fields_of(column, batch)
        return pa.array([x if isinstance(x, str) else None for x in fields], pa.large_string())
    try:
        return texts_of(batch, column)
    except pa.ArrowException as error:
        kind = batch.column(column).type
        raise InputError(f"{split.path}: the column {column!r} must hold strings, it holds {kind}") from error


def _one_kind(rule: Priority, seen: set[str], path: str) -> str | None:
    kinds = sorted(seen)
    if len(kinds) > 1:
        raise InputError(f"{path}: {rule.column!r} holds {kinds[0]}s and {kinds[1]}s; give it one type")
    return kinds[0] if kinds else None


def partition_of(keys: NDArray[np.uint64], num_partitions: int) -> NDArray[np.int64]:
    """Give the partition of every key, by its upper bits."""
    return ((keys >> np.uint64(32)) * np.uint64(num_partitions) >> np.uint64(32)).astype(np.int64)


def _group_hashes(
    hashes: NDArray[np.uint64], present: NDArray[np.bool_], keys: NDArray[np.int64], num_partitions: int
) -> list[list[Any]]:
    rows = np.flatnonzero(present)
    order, bounds = group(partition_of(hashes[rows, 1], num_partitions), num_partitions)
    rows = rows[order]
    blocks = []
    for begin, end in itertools.pairwise(bounds):
        part = rows[begin:end]
        block: list[Any] = [hashes[part, 0], hashes[part, 1], part.astype("<u4")]
        blocks.append(block + ([keys[part]] if keys.shape[1] else []))
    return blocks


def _group_bands(
    hashes: NDArray[np.uint64],
    bands: NDArray[np.uint64],
    present: NDArray[np.bool_],
    keys: NDArray[np.int64],
    num_partitions: int,
) -> list[list[Any]]:
    """Group the keys of documents without a preferred copy in the split: the copy has the same."""
    rows = np.flatnonzero(present)
    rows = rows[np.sort(first_copies(hashes[rows], keys[rows], rows)[0])]
    found = bands[rows].ravel()
    owners = np.repeat(rows.astype("<u4"), bands.shape[1])
    order, bounds = group(partition_of(found, num_partitions).astype(np.uint16), num_partitions)
    found, owners = found[order], owners[order]
    return [[found[a:b], owners[a:b]] for a, b in itertools.pairwise(bounds)]


def first_copies(
    hashes: NDArray[np.uint64], keys: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Find of equal hashes the document that stays.

    Args:
        hashes: (num_docs, 2).
        keys: (num_docs, num_rules), see `preference`.
        ids: (num_docs,), ascending.

    Returns:
        Indices: of one document for every hash; of copies; of what stays in the place of each copy.
    """
    order = np.lexsort((hashes[:, 0], hashes[:, 1])) if not keys.shape[1] else _preferred(hashes, keys, ids)
    low, high = hashes[order, 0], hashes[order, 1]
    new = np.ones(len(order), bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    firsts = order[new]
    return firsts, order[~new], firsts[np.cumsum(new) - 1][~new] if len(order) else order


def _preferred(
    hashes: NDArray[np.uint64], keys: NDArray[np.int64], ids: NDArray[np.int64]
) -> NDArray[np.intp]:
    order = preference(keys, ids)
    return order[np.lexsort((hashes[order, 0], hashes[order, 1]))]  # a stable sort


@dataclass(frozen=True)
class Part:
    """A split that was signed, or a part of it, and where its documents are.

    Attributes:
        split: what it is of.
        blocks: path of its hashes and keys.
        path: of a Parquet file with its documents.
        start: first row group there.
        stop: end, exclusive; None for the file's.
        first: number of its first document in the corpus.
        num_docs: how many there are.
        num_bytes: of their texts.
        num_compared: documents that have what is compared.
        file_row: place of its first document among those of its file.
    """

    split: Split
    blocks: str
    path: str
    start: int
    stop: int | None
    first: int
    num_docs: int
    num_bytes: int
    num_compared: int
    file_row: int


def save_parts(path: str, parts: Sequence[Part]) -> None:
    """Write the list of parts."""
    storage.write_json(path, [asdict(part) for part in parts])


@lru_cache(maxsize=4)
def load_parts(path: str) -> tuple[Part, ...]:
    """Read what `save_parts` wrote: it stays the same as long as its path does."""
    return tuple(Part(**{**row, "split": Split(**row["split"])}) for row in storage.read_json(path))


def read_partition(
    parts: Sequence[Part], block: int, dtypes: Sequence[str]
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """Read one block of every part, whose array of rows (`<u4`) becomes numbers of documents.

    Returns:
        The numbers, and the other arrays end to end.
    """
    place = dtypes.index("<u4")
    ids: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    others: list[list[NDArray[Any]]] = [[np.zeros(0, x)] for x in dtypes]
    for part in parts:
        arrays: list[NDArray[Any]] = list(read_arrays(part.blocks, block, *dtypes))
        ids.append(arrays[place].astype(np.int64) + part.first)
        for gathered, array in zip(others, arrays, strict=True):
            gathered.append(array)
    del others[place]
    return np.concatenate(ids), [np.concatenate(x) for x in others]


def match_hashes(
    parts: Sequence[Part], partition: int, num_keys: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the exact copies among the hashes of a partition.

    Returns:
        Numbers of the copies, ascending, and of what stays in the place of each.
    """
    ids, (low, high, *rest) = read_partition(parts, partition, hash_record(num_keys))
    keys = np.concatenate([np.zeros(0, np.int64), *rest]).reshape(len(ids), num_keys)
    _, copies, stays = first_copies(np.stack([low, high], 1), keys, ids)
    order = np.argsort(ids[copies])
    return ids[copies][order], ids[stays][order]

"""The growing files of token shards: appended to, published, and gone on with after a kill.

While documents are tokenized, a folder has beside finished shards

    .NAME.tokens.part    ids so far           .NAME.lengths.part   int64, ids of each document so far
    .tokenize.json       what the parts are made of, the row groups they hold, their counts and hashes

and, when all is published, `.finished.json`, which says what the shards are made of.

The journal is replaced after each row group, and a call that was killed goes on behind it: it cuts the parts
back to what the journal says and compares their hashes, so a journal that a failing machine left too new is
not believed. NAME.docs.parquet does not depend on the tokenizer and is written again; it takes a hundredth of
the time.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from pylm.data.chat import END_OF_TEXT
from pylm.data.shards import DOCUMENT_FIELDS, FORMAT, ShardMeta
from pylm.data.token_statistics import STATISTICS, IdUse, ShardStats, SplitStats, TokenCounts
from pylm.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from pylm.text import Tokenizer

_JOURNAL = ".tokenize.json"
_FINISHED = ".finished.json"
_SCAN_BYTES = 16 << 20


@dataclass(frozen=True)
class Part:
    """What a batch has of one source."""

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    lengths: NDArray[np.int64]
    ids_V: NDArray[np.int64]
    counts: TokenCounts


@dataclass(frozen=True)
class Encoded:
    """A batch of documents, encoded."""

    parts: Mapping[str, Part]
    languages: Mapping[str, TokenCounts]
    references: pa.RecordBatch


class _StaleError(Exception):
    """A part is not what the journal says."""


@dataclass
class _State:
    """How far a shard has come."""

    counts: TokenCounts
    ids_V: NDArray[np.int64]
    hash: xxhash.xxh3_128

    @classmethod
    def empty(cls, tokenizer: "Tokenizer", counts: TokenCounts | None = None) -> "_State":
        return cls(counts or TokenCounts(), np.zeros(tokenizer.vocab_size, np.int64), xxhash.xxh3_128())


def _load_state(folder: Path, name: str, counts: TokenCounts, digest: str, tokenizer: "Tokenizer") -> _State:
    """Cut the parts of a shard back to what the journal says, and read them.

    Raises:
        _StaleError: they are not what it says.
    """
    damaged = _StaleError("what an earlier call left is damaged")
    state = _State.empty(tokenizer, counts)
    tokens, tokens_part = folder / f"{name}.tokens", _part(folder, name, "tokens")
    size = counts.num_tokens * id_dtype(tokenizer).itemsize
    if not tokens_part.exists() and tokens.exists() and tokens.stat().st_size == size:
        # It was killed while it published.
        (folder / f"{name}.meta.json").unlink(missing_ok=True)
        tokens.rename(tokens_part)
    lengths_part = _part(folder, name, "lengths")
    for path, expected in ((tokens_part, size), (lengths_part, counts.num_docs * 8)):
        if not path.exists() or path.stat().st_size < expected:
            raise damaged
        os.truncate(path, expected)
    with tokens_part.open("rb") as file:
        while block := file.read(_SCAN_BYTES):
            state.hash.update(block)
            ids = np.frombuffer(block, id_dtype(tokenizer))
            if ids.max() >= tokenizer.vocab_size:
                raise damaged
            state.ids_V += np.bincount(ids, minlength=tokenizer.vocab_size)
    if state.hash.hexdigest() != digest or np.fromfile(lengths_part, np.int64).sum() != counts.num_tokens:
        raise damaged
    return state


def _part(folder: Path, name: str, kind: str) -> Path:
    return folder / f".{name}.{kind}.part"


def id_dtype(tokenizer: "Tokenizer") -> np.dtype[Any]:
    """Type of the ids in a shard."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


class _SourceWriter:
    """The growing files of one shard; without a state, new ones."""

    def __init__(
        self, folder: Path, name: str, tokenizer: "Tokenizer", stack: ExitStack, state: _State | None
    ) -> None:
        self.name = name
        self.tokens_part = _part(folder, name, "tokens")
        self.lengths_part = _part(folder, name, "lengths")
        self.state = state or _State.empty(tokenizer)
        self._folder = folder
        self._stack = stack
        self._tokenizer = tokenizer
        docs_path = stack.enter_context(atomic_path(folder / f"{name}.docs.parquet"))
        schema = pa.schema([(field, pa.string()) for field in DOCUMENT_FIELDS])
        self._docs = stack.enter_context(pq.ParquetWriter(docs_path, schema, compression="zstd"))
        mode = "ab" if state else "wb"
        self._tokens: IO[Any] = stack.enter_context(self.tokens_part.open(mode, buffering=0))
        self._lengths: IO[Any] = stack.enter_context(self.lengths_part.open(mode, buffering=0))

    @property
    def counts(self) -> TokenCounts:
        return self.state.counts

    @property
    def digest(self) -> str:
        return self.state.hash.hexdigest()

    def write(self, part: Part) -> None:
        _write_all(self._tokens, part.ids)
        _write_all(self._lengths, part.lengths)
        self.state.hash.update(part.ids.data)
        self.state.ids_V += part.ids_V
        self.state.counts = self.counts.plus(part.counts)

    def write_references(self, table: pa.Table) -> None:
        self._docs.write_table(table)

    def finish(self) -> ShardMeta:
        os.fsync(self._tokens.fileno())
        offsets_path = self._stack.enter_context(atomic_path(self._folder / f"{self.name}.offsets.npy"))
        offsets = np.concatenate([[0], np.fromfile(self.lengths_part, np.int64)]).cumsum(dtype=np.int64)
        with offsets_path.open("wb") as file:
            np.save(file, offsets)
        return ShardMeta(
            format=FORMAT,
            name=self.name,
            dtype="uint16" if id_dtype(self._tokenizer).itemsize == 2 else "uint32",
            num_docs=self.counts.num_docs,
            num_tokens=self.counts.num_tokens,
            num_bytes=self.counts.num_bytes,
            num_used=int(np.count_nonzero(self.state.ids_V)),
            vocab_size=self._tokenizer.vocab_size,
            eos_id=self._tokenizer.special_tokens[END_OF_TEXT],
            tokenizer=self._tokenizer.fingerprint,
            tokens_xxh3=self.digest,
        )


def _write_all(file: IO[Any], values: NDArray[Any]) -> None:
    rest = memoryview(values.view(np.uint8).data)
    while rest:
        rest = rest[file.write(rest) :]


class Writers:
    """The shards of one file of documents.

    Offsets and references appear under their names when `stack` ends.
    """

    def __init__(self, folder: Path, tokenizer: "Tokenizer", stack: ExitStack) -> None:
        self.sources: dict[str, _SourceWriter] = {}
        self.languages: dict[str, TokenCounts] = {}
        self._folder = folder
        self._tokenizer = tokenizer
        self._stack = stack
        self._references: list[pa.RecordBatch] = []

    @property
    def num_docs(self) -> int:
        return sum(writer.counts.num_docs for writer in self.sources.values())

    @property
    def num_tokens(self) -> int:
        return sum(writer.counts.num_tokens for writer in self.sources.values())

    def add(self, name: str, state: _State | None = None) -> None:
        self.sources[name] = _SourceWriter(self._folder, name, self._tokenizer, self._stack, state)

    def write(self, encoded: Encoded) -> None:
        for name, part in encoded.parts.items():
            if name not in self.sources:
                self.add(name)
            self.sources[name].write(part)
        for language, counts in encoded.languages.items():
            self.languages[language] = self.languages.get(language, TokenCounts()).plus(counts)
        self._references.append(encoded.references)

    def end_group(self) -> None:
        self.write_references(self._references)
        self._references = []

    def write_references(self, batches: Sequence[pa.RecordBatch]) -> None:
        if not batches:
            return
        # As one chunk: where chunks end shows in the file.
        table = pa.Table.from_batches(batches).combine_chunks()
        names = pc.unique(table["source"]).to_pylist()
        for name in names:
            part = table.filter(pc.equal(table["source"], name)) if len(names) > 1 else table
            self.sources[name].write_references(part)

    def remove_vanished(self) -> None:
        """Remove the shards of sources that the folder's statistics name and that there are no more."""
        before = SplitStats.load(self._folder / STATISTICS)
        for name in sorted(set(before.sources if before else ()) - set(self.sources)):
            if Path(name).name != name:
                continue
            # The description first, so that what a kill leaves does not pass for a shard.
            for kind in ("meta.json", "tokens", "offsets.npy", "docs.parquet"):
                (self._folder / f"{name}.{kind}").unlink(missing_ok=True)

    def finish(self) -> list[ShardMeta]:
        """Complete the files; nothing that was there under their names counts from here on."""
        metas = [self.sources[name].finish() for name in sorted(self.sources)]
        for name in (_FINISHED, STATISTICS):
            (self._folder / name).unlink(missing_ok=True)
        for meta in metas:
            (self._folder / f"{meta.name}.meta.json").unlink(missing_ok=True)
            self.sources[meta.name].tokens_part.replace(self._folder / f"{meta.name}.tokens")
        return metas

    def publish(self, metas: Sequence[ShardMeta]) -> SplitStats:
        """Write the descriptions, which say that shards are whole, and add up."""
        stats = {}
        whole = _State.empty(self._tokenizer)
        for meta in metas:
            write_json(self._folder / f"{meta.name}.meta.json", meta.model_dump())
            writer = self.sources[meta.name]
            stats[meta.name] = ShardStats(
                **writer.counts.counts(), num_used=meta.num_used, vocab_size=meta.vocab_size
            )
            whole.counts = whole.counts.plus(writer.counts)
            whole.ids_V += writer.state.ids_V
        total = ShardStats(
            **whole.counts.counts(),
            num_used=int(np.count_nonzero(whole.ids_V)),
            vocab_size=len(whole.ids_V),
        )
        return SplitStats(total, stats, dict(sorted(self.languages.items())), IdUse.of(whole.ids_V))

    def discard(self) -> None:
        """Remove what only a call that goes on would need."""
        (self._folder / _JOURNAL).unlink(missing_ok=True)
        for writer in self.sources.values():
            writer.tokens_part.unlink(missing_ok=True)
            writer.lengths_part.unlink(missing_ok=True)


def is_finished(folder: Path, key: str) -> bool:
    """Whether a call has published shards that are made of `key`."""
    try:
        return bool(read_json(folder / _FINISHED) == {"key": key})
    except (FileNotFoundError, ValueError):
        return False


def save_finished(folder: Path, key: str) -> None:
    """Say that all that is made of `key` is published."""
    write_json(folder / _FINISHED, {"key": key})


def save_journal(folder: Path, writers: Writers, key: str, num_groups: int) -> None:
    """Say what the parts hold. Not synced to the disk: whoever goes on compares the hashes."""
    value = {
        "key": key,
        "num_groups": num_groups,
        "sources": {n: {"counts": w.counts.counts(), "xxh3": w.digest} for n, w in writers.sources.items()},
        "languages": {name: counts.counts() for name, counts in writers.languages.items()},
    }
    temporary = folder / f"{_JOURNAL}.part"
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(folder / _JOURNAL)


def resume(
    folder: Path,
    writers: Writers,
    key: str,
    *,
    tokenizer: "Tokenizer",
    read_references: Callable[[int], Iterable[pa.RecordBatch]],
    num_documents: int,
    note: Callable[[str], object],
) -> int:
    """Go on with what a call that was killed left, or clear it away.

    Args:
        folder: of the shards.
        writers: for them, without any yet.
        key: what the journal must have been made of.
        tokenizer: of the ids.
        read_references: reads the `DOCUMENT_FIELDS` of a row group.
        num_documents: in all.
        note: called with a line that says which of the two it is.

    Returns:
        Row groups that are done.
    """
    try:
        journal = read_json(folder / _JOURNAL)
        if journal["key"] != key:
            raise _StaleError("documents or tokenizer have changed")
        states = {
            name: _load_state(folder, name, TokenCounts(**saved["counts"]), saved["xxh3"], tokenizer)
            for name, saved in journal["sources"].items()
        }
        languages = {name: TokenCounts(**saved) for name, saved in journal["languages"].items()}
        num_groups = int(journal["num_groups"])
    except FileNotFoundError:
        pass
    except (_StaleError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, _StaleError) else "what an earlier call left is damaged"
        note(f"{folder}: {reason}; starts over")
    else:
        for name, state in states.items():
            writers.add(name, state)
        writers.languages = languages
        note(f"{folder}: goes on after {writers.num_docs:,} of {num_documents:,} documents")
        for group in range(num_groups):
            writers.write_references(list(read_references(group)))
        return num_groups
    for path in (folder / _JOURNAL, *folder.glob(".*.tokens.part"), *folder.glob(".*.lengths.part")):
        path.unlink(missing_ok=True)
    return 0

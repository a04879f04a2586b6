"""Token shards: documents as one long row of token ids for each source, memory-mapped when read.

A shard NAME in a folder is four files:

    NAME.tokens        ids, little-endian uint16 (vocabulary up to 65,536) or uint32
    NAME.offsets.npy   int64 (num_docs + 1,), where each document begins; the last is the number of ids
    NAME.docs.parquet  id, source, url of each document, in the same order
    NAME.meta.json     format, dtype, counts, hashes; written last, so a shard that has it is whole

Every document is followed by one end-of-text id.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from pylm.config import Config
from pylm.data.chat import END_OF_TEXT
from pylm.data.vocabulary import TokenizerConfig, read_documents, train_tokenizer
from pylm.errors import InputError
from pylm.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from pylm.text import Tokenizer

__all__ = [
    "DocumentRef",
    "Shard",
    "ShardMeta",
    "ShardStats",
    "TokenizerConfig",
    "open_shards",
    "tokenize",
    "train_tokenizer",
    "write_shards",
]

FORMAT = 1
"""Raised when the files change their meaning."""

_DOCUMENT_FIELDS = ("id", "source", "url")


class ShardMeta(Config):
    """What NAME.meta.json holds."""

    format: int
    """Version of the layout."""
    name: str
    """Name of the shard, which is the documents' source."""
    dtype: Literal["uint16", "uint32"]
    """Of the ids, little-endian."""
    num_docs: int = Field(ge=0)
    """Documents."""
    num_tokens: int = Field(ge=0)
    """Ids, one end of text a document included."""
    num_bytes: int = Field(ge=0)
    """UTF-8 bytes of the documents' text."""
    num_used: int = Field(ge=0)
    """Different ids that occur."""
    vocab_size: int = Field(ge=1)
    """Of the tokenizer."""
    eos_id: int = Field(ge=0)
    """The end-of-text id."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    tokens_xxh3: str
    """XXH3-128 of the ids' file."""


@dataclass(frozen=True)
class ShardStats:
    """What tokenizing a source gave.

    Attributes:
        num_docs: documents.
        num_tokens: ids, one end of text a document included.
        num_bytes: UTF-8 bytes of text.
        num_used: different ids that occur.
        vocab_size: ids there are.
    """

    num_docs: int
    num_tokens: int
    num_bytes: int
    num_used: int
    vocab_size: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text a token stands for, ends of text not counted; 0 without tokens."""
        num_text_tokens = self.num_tokens - self.num_docs
        return self.num_bytes / num_text_tokens if num_text_tokens else 0.0

    @property
    def tokens_per_byte(self) -> float:
        """Fertility: tokens a byte of text takes, ends of text not counted; 0 without bytes."""
        return (self.num_tokens - self.num_docs) / self.num_bytes if self.num_bytes else 0.0

    @property
    def vocab_used(self) -> float:
        """Share of the vocabulary that occurs."""
        return self.num_used / self.vocab_size

    def to_dict(self) -> dict[str, int | float]:
        """Give fields and ratios for a stage's summary."""
        return {
            **asdict(self),
            "bytes_per_token": round(self.bytes_per_token, 4),
            "tokens_per_byte": round(self.tokens_per_byte, 4),
            "vocab_used": round(self.vocab_used, 4),
        }


@dataclass(frozen=True)
class DocumentRef:
    """Which document it is.

    Attributes:
        id: its id.
        source: its source.
        url: where it comes from; None where unknown.
    """

    id: str
    source: str
    url: str | None


def tokenize(
    documents_parquet: Path, tokenizer: "Tokenizer", out: Path, *, num_threads: int = 0
) -> dict[str, ShardStats]:
    """Turn a Parquet file of documents into token shards, one for each source.

    Args:
        documents_parquet: documents with the columns `id`, `text`, `source`, `url`.
        tokenizer: the tokenizer.
        out: folder of the shards.
        num_threads: threads; 0 takes all cores. The files do not depend on it.

    Returns:
        Statistics by source.

    Raises:
        InputError: no usable documents, see `write_shards`.
    """
    documents = read_documents(documents_parquet, ("id", "text", "source", "url"))
    statistics = write_shards(documents, tokenizer, out, num_threads=num_threads)
    if not statistics:
        raise InputError(f"{documents_parquet}: no documents to tokenize; loosen the filters")
    return statistics


def write_shards(
    documents: Iterable[pa.RecordBatch], tokenizer: "Tokenizer", folder: Path, *, num_threads: int = 0
) -> dict[str, ShardStats]:
    """Encode documents and write one shard for each source.

    Memory does not grow with the documents, but for 8 bytes each. Nothing is published before the last
    document is encoded; shards of the same names are replaced.

    Args:
        documents: batches with the columns `id`, `text`, `source`, `url`; sources may be mixed.
        tokenizer: has `<|endoftext|>`. Its special tokens' texts inside a document are ordinary text.
        folder: where the shards go.
        num_threads: threads of the tokenizer; 0 takes all cores.

    Returns:
        Statistics by source, sorted by name.

    Raises:
        InputError: a document without text or source, or a source that cannot be a file's name.
    """
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise InputError(f"the tokenizer lacks {END_OF_TEXT}, which ends every document; train it with that")
    with ExitStack() as stack:
        writers: dict[str, _ShardWriter] = {}
        for batch in documents:
            sources = batch["source"]
            for source in pc.unique(sources).to_pylist():
                part = batch.filter(pc.equal(sources, source)) if source is not None else batch
                _check_documents(part, source)
                if source not in writers:
                    writers[source] = _ShardWriter(folder, source, tokenizer, stack)
                writers[source].write(part, num_threads=num_threads)
        metas = [writers[source].finish() for source in sorted(writers)]
        for meta in metas:
            (folder / f"{meta.name}.meta.json").unlink(missing_ok=True)
    for meta in metas:
        write_json(folder / f"{meta.name}.meta.json", meta.model_dump())
    return {
        meta.name: ShardStats(
            meta.num_docs, meta.num_tokens, meta.num_bytes, meta.num_used, meta.vocab_size
        )
        for meta in metas
    }  # fmt: skip


class _ShardWriter:
    """The open files of one shard. They appear under their names when `stack` ends."""

    def __init__(self, folder: Path, name: str, tokenizer: "Tokenizer", stack: ExitStack) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._eos_id = tokenizer.special_tokens[END_OF_TEXT]
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._offsets_path = stack.enter_context(atomic_path(folder / f"{name}.offsets.npy"))
        tokens_path = stack.enter_context(atomic_path(folder / f"{name}.tokens"))
        docs_path = stack.enter_context(atomic_path(folder / f"{name}.docs.parquet"))
        self._tokens: BinaryIO = stack.enter_context(tokens_path.open("wb"))
        schema = pa.schema([(field, pa.string()) for field in _DOCUMENT_FIELDS])
        self._docs = stack.enter_context(pq.ParquetWriter(docs_path, schema, compression="zstd"))
        self._lengths: list[NDArray[np.int64]] = []
        self._is_used_V = np.zeros(tokenizer.vocab_size, dtype=bool)
        self._hash = xxhash.xxh3_128()
        self._num_bytes = 0

    def write(self, batch: pa.RecordBatch, *, num_threads: int) -> None:
        encoded = self._tokenizer.encode_batch(batch["text"], end_id=self._eos_id, num_threads=num_threads)
        ids_N, offsets_D = np.asarray(encoded.ids), np.asarray(encoded.offsets)
        out_N = ids_N.astype(self._dtype, copy=False)
        self._is_used_V[ids_N] = True
        self._tokens.write(out_N.data)
        self._hash.update(out_N.data)
        self._lengths.append(np.diff(offsets_D))
        self._num_bytes += pc.sum(pc.binary_length(batch["text"])).as_py() or 0
        columns = [batch[field].cast(pa.string()) for field in _DOCUMENT_FIELDS]
        self._docs.write_batch(pa.record_batch(columns, names=list(_DOCUMENT_FIELDS)))

    def finish(self) -> ShardMeta:
        offsets = np.concatenate([[0], *self._lengths]).cumsum(dtype=np.int64)
        with self._offsets_path.open("wb") as file:
            np.save(file, offsets)
        self._is_used_V[self._eos_id] = True
        return ShardMeta(
            format=FORMAT,
            name=self._name,
            dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
            num_docs=len(offsets) - 1,
            num_tokens=int(offsets[-1]),
            num_bytes=self._num_bytes,
            num_used=int(self._is_used_V.sum()),
            vocab_size=self._tokenizer.vocab_size,
            eos_id=self._eos_id,
            tokenizer=self._tokenizer.fingerprint,
            tokens_xxh3=self._hash.hexdigest(),
        )


def _check_documents(batch: pa.RecordBatch, source: str | None) -> None:
    if source is None:
        raise InputError("a document has no source; every document needs one")
    if not source or source.startswith(".") or any(c in source for c in '/\\:*?"<>|\0'):
        raise InputError(f"source {source!r} cannot name a file; use letters, digits, '.', '_' and '-'")
    if nulls := batch["text"].null_count:
        raise InputError(f"{nulls} documents of source {source} have no text; drop them before")


class Shard:
    """One source's ids, memory-mapped.

    Attributes:
        name: the source.
        tokens: uint16 or uint32 (num_tokens,).
        offsets: int64 (num_docs + 1,), where each document begins.
        meta: counts and hashes.
    """

    def __init__(
        self,
        folder: Path,
        meta: ShardMeta,
        tokens: NDArray[np.uint16] | NDArray[np.uint32],
        offsets: NDArray[np.int64],
    ) -> None:
        """Take arrays that are already open; `Shard.open` is the usual way."""
        self.folder = folder
        self.name = meta.name
        self.meta = meta
        self.tokens = tokens
        self.offsets = offsets

    @classmethod
    def open(cls, folder: Path, name: str) -> "Shard":
        """Map a shard's files.

        Args:
            folder: where the shard is.
            name: its name.

        Raises:
            InputError: files are missing, cut off, or do not fit together.
        """
        meta_path = folder / f"{name}.meta.json"
        remedy = "run the tokenize stage again"
        if not meta_path.is_file():
            known = sorted(path.name.removesuffix(".meta.json") for path in folder.glob("*.meta.json"))
            raise InputError(f"{folder}: no token shard {name!r}; there are: {', '.join(known) or 'none'}")
        try:
            meta = ShardMeta.model_validate(read_json(meta_path))
        except (ValidationError, ValueError) as error:
            raise InputError(
                f"{meta_path}: not a shard's description ({_one_line(error)}); {remedy}"
            ) from error
        if meta.format != FORMAT:
            raise InputError(f"{meta_path}: format {meta.format}, expected {FORMAT}; {remedy}")
        tokens_path, offsets_path = folder / f"{name}.tokens", folder / f"{name}.offsets.npy"
        for path in (tokens_path, offsets_path, folder / f"{name}.docs.parquet"):
            if not path.is_file():
                raise InputError(f"{path}: no such file, though {meta_path.name} is there; {remedy}")
        dtype = np.dtype(meta.dtype).newbyteorder("<")
        size, expected = tokens_path.stat().st_size, meta.num_tokens * dtype.itemsize
        if size != expected:
            raise InputError(
                f"{tokens_path}: {size} bytes, expected {expected} "
                f"({meta.num_tokens} ids of {meta.dtype}); {remedy}"
            )
        try:
            offsets = np.load(offsets_path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{offsets_path}: not readable ({_one_line(error)}); {remedy}") from error
        if not _is_fitting(offsets, meta):
            raise InputError(
                f"{offsets_path}: expected {meta.num_docs + 1} rising int64 from 0 to {meta.num_tokens}, "
                f"got {offsets.dtype} {offsets.shape}; {remedy}"
            )
        tokens = np.memmap(tokens_path, dtype, mode="r") if expected else np.empty(0, dtype)
        return cls(folder, meta, tokens, offsets)

    def check_tokenizer(self, tokenizer: "Tokenizer") -> None:
        """Make sure that the ids are those of a tokenizer.

        Raises:
            InputError: the shard was made by another one.
        """
        if tokenizer.fingerprint != self.meta.tokenizer:
            raise InputError(
                f"{self.folder / self.name}.tokens was made by tokenizer {self.meta.tokenizer[:8]}, "
                f"this one is {tokenizer.fingerprint[:8]}; run the tokenize stage again, or take that one"
            )

    def check_content(self) -> None:
        """Read all ids and compare their hash with the one kept.

        Raises:
            InputError: the file has changed since it was written.
        """
        digest = xxhash.xxh3_128()
        for start in range(0, len(self.tokens), 1 << 22):
            digest.update(self.tokens[start : start + (1 << 22)].data)
        if digest.hexdigest() != self.meta.tokens_xxh3:
            raise InputError(
                f"{self.folder / self.name}.tokens: its content has changed since it was written; "
                f"run the tokenize stage again"
            )

    def documents_between(self, start: int, stop: int) -> range:
        """Name the documents that ids `start:stop` belong to, an end of text to the one it ends."""
        if start >= stop:
            return range(0)
        first, last = np.searchsorted(self.offsets, (start, stop - 1), side="right") - 1
        return range(int(first), int(last) + 1)

    def documents(self, indices: Iterable[int]) -> list[DocumentRef]:
        """Look documents up by their numbers in the shard; reads the parts of the file that hold them."""
        wanted = list(indices)
        found: dict[int, DocumentRef] = {}
        with pq.ParquetFile(self.folder / f"{self.name}.docs.parquet") as file:
            start = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                inside = [i for i in wanted if start <= i < start + num_rows]
                if inside:
                    table = file.read_row_group(group)
                    rows = table.take([i - start for i in inside]).to_pylist()
                    found.update({i: DocumentRef(**row) for i, row in zip(inside, rows, strict=True)})
                start += num_rows
        return [found[i] for i in wanted]


def _is_fitting(offsets: NDArray[np.int64], meta: ShardMeta) -> bool:
    if offsets.dtype != np.int64 or offsets.shape != (meta.num_docs + 1,):
        return False
    if offsets[0] != 0 or offsets[-1] != meta.num_tokens:
        return False
    blocks = range(0, meta.num_docs, 1 << 22)
    return all((np.diff(offsets[start : start + (1 << 22) + 1]) > 0).all() for start in blocks)


def open_shards(folder: Path, names: Iterable[str] = ()) -> Mapping[str, Shard]:
    """Open shards by name, or all of a folder.

    Args:
        folder: where they are.
        names: which; none means all.

    Returns:
        Shards by name, sorted.

    Raises:
        InputError: one cannot be used, or there is none.
    """
    found = sorted(names) or sorted(p.name.removesuffix(".meta.json") for p in folder.glob("*.meta.json"))
    if not found:
        raise InputError(f"{folder}: no token shards; run the tokenize stage first")
    return {name: Shard.open(folder, name) for name in found}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]

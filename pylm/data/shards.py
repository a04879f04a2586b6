"""Token shards: documents as one long row of token ids for each source, memory-mapped when read.

A shard NAME in a folder is four files:

    NAME.tokens        ids, little-endian uint16 (vocabulary up to 65,536) or uint32
    NAME.offsets.npy   int64 (num_docs + 1,), where each document begins; the last is the number of ids
    NAME.docs.parquet  id, source, url of each document, in the same order
    NAME.meta.json     format, dtype, counts, hashes; written last, so a shard that has it is whole

Every document is followed by one end-of-text id.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from pylm.config import Config
from pylm.errors import InputError
from pylm.files import read_json

if TYPE_CHECKING:
    from pylm.text import Tokenizer

FORMAT = 1
"""Raised when the files change their meaning."""

DOCUMENT_FIELDS = ("id", "source", "url")
"""Columns of NAME.docs.parquet."""


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

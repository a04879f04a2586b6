"""The tokenizer of a run: trained on a sample of the documents, told apart from others by its fingerprint."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from pylm.config import Config
from pylm.data.chat import END_OF_TEXT, SPECIAL_TOKENS
from pylm.errors import InputError
from pylm.files import atomic_path

if TYPE_CHECKING:
    from pylm.text import Tokenizer


class TokenizerConfig(Config):
    """Training of the byte-level BPE tokenizer."""

    vocab_size: int = Field(32768, ge=256)
    """Tokens in all: 256 bytes, merges, special tokens."""
    pattern: Literal["gpt2", "cl100k", "qwen2"] = "cl100k"
    """How text is split before merging; no token crosses a border."""
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    """Tokens that text never becomes; the first ids after the merges. Must hold `<|endoftext|>`."""
    min_frequency: int = Field(2, ge=1)
    """A pair that is rarer than this in the sample is not merged."""
    max_bytes: int = Field(2_000_000_000, ge=1)
    """Most bytes of text to train on: a sample of whole documents, evenly drawn."""


def train_tokenizer(
    config: TokenizerConfig, documents_parquet: Path, out: Path, *, seed: int, num_threads: int = 0
) -> "Tokenizer":
    """Train a tokenizer on a sample of documents.

    Args:
        config: the recipe's part.
        documents_parquet: documents with the columns `id` and `text`.
        out: the tokenizer.json to write.
        seed: decides the sample, where there is more text than `config.max_bytes`.
        num_threads: threads; 0 takes all cores. The result does not depend on it.

    Returns:
        The tokenizer.

    Raises:
        InputError: no usable documents, or `config` has no end-of-text token.
    """
    from pylm.text import Tokenizer

    if END_OF_TEXT not in config.special_tokens:
        raise InputError(
            f"tokenizer.special_tokens must hold {END_OF_TEXT}, got {list(config.special_tokens)}"
        )
    texts = sample_texts(documents_parquet, max_bytes=config.max_bytes, seed=seed)
    tokenizer = Tokenizer.train(
        texts,
        vocab_size=config.vocab_size,
        pattern=config.pattern,
        special_tokens=config.special_tokens,
        min_frequency=config.min_frequency,
        num_threads=num_threads,
    )
    with atomic_path(out) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def sample_texts(documents_parquet: Path, *, max_bytes: int, seed: int) -> list[str]:
    """Draw whole documents, each with the same chance, until the next would pass `max_bytes`.

    The draw depends on the documents' ids and the seed alone: not on their order in the file.

    Args:
        documents_parquet: documents with the columns `id` and `text`.
        max_bytes: most UTF-8 bytes of text; a first document that is longer is taken all the same.
        seed: of the draw.

    Returns:
        The texts, in the order of the file.
    """
    sizes, keys = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for batch in read_documents(documents_parquet, ("id", "text")):
        sizes.append(pc.binary_length(batch["text"]).to_numpy(zero_copy_only=False).astype(np.int64))
        ids = batch["id"].to_pylist()
        keys.append(
            np.fromiter(
                (xxhash.xxh3_64_intdigest(i.encode(), seed & (1 << 64) - 1) for i in ids), np.uint64, len(ids)
            )
        )
    size_N, key_N = np.concatenate(sizes), np.concatenate(keys)
    if not len(size_N):
        raise InputError(f"{documents_parquet}: no documents to train a tokenizer on; loosen the filters")
    order_N = np.argsort(key_N, kind="stable")
    num_taken = max(1, int(np.searchsorted(np.cumsum(size_N[order_N]), max_bytes, side="right")))
    is_taken_N = np.zeros(len(size_N), dtype=bool)
    is_taken_N[order_N[:num_taken]] = True
    texts: list[str] = []
    start = 0
    for batch in read_documents(documents_parquet, ("text",)):
        texts += batch["text"].filter(pa.array(is_taken_N[start : start + len(batch)])).to_pylist()
        start += len(batch)
    return texts


def read_documents(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of a Parquet file of documents, batch by batch.

    Raises:
        InputError: there is no such file, it is not Parquet, or a column is missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the prepare stage first")
    try:
        with pq.ParquetFile(path) as file:
            if missing := set(columns) - set(file.schema_arrow.names):
                raise InputError(
                    f"{path}: columns {', '.join(sorted(missing))} are missing; is it of documents?"
                )
            yield from file.iter_batches(batch_size=4096, columns=list(columns))
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error


def fingerprint_tokenizer(tokenizer: "Tokenizer") -> str:
    """Hash what a tokenizer does: its vocabulary, its special tokens, and how it splits a probe.

    The same for all files that hold the same tokenizer.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(id)
        digest.update(len(token).to_bytes(4, "little") + token)
    digest.update(repr(sorted(tokenizer.special_tokens.items())).encode())
    digest.update(repr(tokenizer.encode_ordinary(_PROBE)).encode())
    return digest.hexdigest()


_PROBE = (
    "It's HE'LL 1234567 x=3.14;\n\n  if (a[i] != b) {\r\n\t return;\n}\n"
    "naïve Ünïcode 東京は 한국어 हिन्दी 🙂🙂   end  \n \n"
)
"""Text on which the patterns differ: contractions, digits, white space, other scripts."""

"""The tokenizer of a run: trained on a sample of the documents."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from pylm.config import Config
from pylm.data.chat import END_OF_TEXT, SPECIAL_TOKENS
from pylm.errors import InputError

if TYPE_CHECKING:
    from pylm.text import Tokenizer, WordCounter
    from pylm.text.word_counter import TrainingProgress

SAVE_INTERVAL_S = 30.0


class TokenizerConfig(Config):
    """Training of the byte-level BPE tokenizer."""

    vocab_size: int = Field(default=32768, ge=256)
    """Tokens in all: 256 bytes, merges, special tokens."""
    pattern: Literal[
        "gpt2", "starcoder", "cl100k", "llama3", "qwen2", "qwen35", "o200k", "tekken", "deepseek3"
    ] = "cl100k"
    """How text is split before merging; no token crosses a border."""
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    """Tokens that text never becomes; they get the first ids. Must hold `<|endoftext|>`."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair that is rarer than this in the sample is not merged."""
    max_token_length: int | None = Field(default=None, ge=1)
    """Tokens have fewer bytes than this; without it, any number."""
    max_bytes: int = Field(default=2_000_000_000, ge=1)
    """Most bytes of text to train on: a sample of whole documents, evenly drawn."""


def train_tokenizer(
    config: TokenizerConfig,
    documents_parquet: Path,
    out: Path,
    *,
    seed: int,
    num_threads: int = 0,
    progress: "TrainingProgress | None" = None,
) -> "Tokenizer":
    """Train a tokenizer on a sample of documents.

    Counting leaves `counts.npz` beside `out` every half minute; a call that was killed goes on from there.

    Args:
        config: the recipe's part.
        documents_parquet: documents with the columns `id` and `text`.
        out: the tokenizer.json to write.
        seed: decides the sample, where there is more text than `config.max_bytes`.
        num_threads: threads; 0 takes all cores. The result does not depend on it.
        progress: called now and then, as by `Tokenizer.train`.

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
    counts = out.with_name("counts.npz")
    counter = _count_sample(config, documents_parquet, counts, seed, num_threads, progress)
    tokenizer = Tokenizer.train(
        counter,
        vocab_size=config.vocab_size,
        special_tokens=config.special_tokens,
        min_frequency=config.min_frequency,
        max_token_length=config.max_token_length,
        num_threads=num_threads,
        progress=progress,
    )
    tokenizer.save(out)
    counts.unlink(missing_ok=True)
    return tokenizer


def _count_sample(
    config: TokenizerConfig,
    documents_parquet: Path,
    counts: Path,
    seed: int,
    num_threads: int,
    progress: "TrainingProgress | None",
) -> "WordCounter":
    from pylm.text import WordCounter

    columns, total = _sample_columns(documents_parquet, max_bytes=config.max_bytes, seed=seed)
    status = documents_parquet.stat()
    sample = [config.pattern, config.max_bytes, seed, status.st_size, status.st_mtime_ns]
    counter = WordCounter.load(counts) if counts.exists() else WordCounter(config.pattern)
    if counter.note.get("sample") != sample:
        counter = WordCounter(config.pattern)
    num_counted = counter.note.get("num_columns", 0)
    assert isinstance(num_counted, int)
    saved_s = time.monotonic()
    done = 0
    for i, column in enumerate(columns):
        done += int(pc.sum(pc.binary_length(column)).as_py() or 0)
        if i < num_counted:
            continue
        counter.add(column, num_threads=num_threads)
        if progress is not None:
            progress("count", done, total)
        if time.monotonic() - saved_s > SAVE_INTERVAL_S:
            counter.note = {"sample": sample, "num_columns": i + 1}
            counter.save(counts)
            saved_s = time.monotonic()
    return counter


def sample_texts(documents_parquet: Path, *, max_bytes: int, seed: int) -> Iterator[str]:
    """Draw whole documents, each with the same chance, until the next would pass `max_bytes`.

    The draw depends on the documents' ids and the seed alone: not on their order in the file.

    Args:
        documents_parquet: documents with the columns `id` and `text`.
        max_bytes: most UTF-8 bytes of text; a first document that is longer is taken all the same.
        seed: of the draw.

    Returns:
        The texts, in the order of the file, read as they are asked for.

    Raises:
        InputError: no usable documents.
    """
    columns, _ = _sample_columns(documents_parquet, max_bytes=max_bytes, seed=seed)
    return (text for column in columns for text in column.to_pylist())


def _sample_columns(
    documents_parquet: Path, *, max_bytes: int, seed: int
) -> tuple[Iterator[pa.StringArray], int]:
    """Draw as `sample_texts`; give Arrow columns and how many bytes they have in all."""
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
    return _filtered_columns(documents_parquet, is_taken_N), int(size_N[is_taken_N].sum())


def _filtered_columns(documents_parquet: Path, is_taken_N: NDArray[np.bool_]) -> Iterator[pa.StringArray]:
    start = 0
    for batch in read_documents(documents_parquet, ("text",)):
        yield batch["text"].filter(pa.array(is_taken_N[start : start + len(batch)]))
        start += len(batch)


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

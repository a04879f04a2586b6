"""Learning a vocabulary from text: what `Tokenizer.train` does."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text import _hf_format
from pylm.text.patterns import find_pattern
from pylm.text.texts import arrow_chunks

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 64 << 20


def learn_merges(
    corpus: "Iterable[str] | Iterable[Path] | pa.Array | pa.ChunkedArray",
    *,
    vocab_size: int,
    pattern: str,
    special_tokens: Sequence[str],
    min_frequency: int,
    num_threads: int,
) -> tuple[list[bytes], NDArray[np.uint32]]:
    """Learn tokens and merges; arguments and errors as in `Tokenizer.train`.

    Returns:
        The bytes of each id (empty for special tokens), and uint32 (num_merges, 4) rows of left id, right
        id, merged id, rank.
    """
    num_special = len(special_tokens)
    if vocab_size < 256 + num_special:
        raise InputError(
            f"vocab_size must be at least {256 + num_special} (256 bytes and {num_special} special "
            f"tokens), got {vocab_size}"
        )
    if len(set(special_tokens)) != num_special or not all(special_tokens):
        raise InputError(f"special_tokens must be different and not empty, got {list(special_tokens)}")
    if min_frequency < 1:
        raise InputError(f"min_frequency must be at least 1, got {min_frequency}")
    pretoken = find_pattern(pattern)
    counter = _core.WordCounter(pretoken.machine() or _core.Pattern("whole"))
    num_texts = 0
    for batch in _text_batches(corpus):
        num_texts += len(batch)
        counter.add(batch if pretoken.has_machine else pretoken.split_all(batch)[0], num_threads=num_threads)
    if num_texts == 0:
        raise InputError("the corpus to train a tokenizer on holds no text")
    tokens = [b""] * num_special
    byte_ids = [0] * 256
    for byte in sorted(range(256), key=lambda b: _hf_format.BYTE_TO_CHAR[b]):
        byte_ids[byte] = len(tokens)
        tokens.append(bytes([byte]))
    first_id = len(tokens)
    pairs = counter.train(
        num_merges=vocab_size - first_id,
        min_frequency=min_frequency,
        byte_ids=byte_ids,
        first_id=first_id,
    )
    for left, right in pairs:
        tokens.append(tokens[left] + tokens[right])
    merges = np.array([(a, b, first_id + i, i) for i, (a, b) in enumerate(pairs)], dtype=np.uint32).reshape(
        -1, 4
    )
    return tokens, merges


def _text_batches(
    corpus: "Iterable[str] | Iterable[Path] | pa.Array | pa.ChunkedArray",
) -> Iterator[list[str] | list[bytes]]:
    """Give texts in batches of bounded size, so that a corpus need not fit into memory."""
    if isinstance(corpus, str | bytes):
        raise TypeError("corpus must be an iterable of texts or paths, got a single text")
    if (chunks := arrow_chunks(corpus)) is not None:
        for chunk in chunks:
            for start in range(0, len(chunk), 4096):
                yield [t for t in chunk.slice(start, 4096).to_pylist() if t is not None]
        return
    batch: list[str | bytes] = []
    size = 0
    for item in corpus:
        text = item.read_bytes() if isinstance(item, Path) else item
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch  # type: ignore[misc]
            batch, size = [], 0
    if batch:
        yield batch  # type: ignore[misc]

"""Learning a vocabulary from text: what `Tokenizer.train` does."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pylm.errors import InputError
from pylm.text._byte_alphabet import BYTE_TO_CHAR, CHAR_TO_BYTE
from pylm.text._checks import check_threads
from pylm.text.patterns import PretokenPattern, find_pattern
from pylm.text.word_counter import TextBatches, TrainingProgress, WordCounter

Ties: TypeAlias = Literal["hf", "lexicographic"]
"""Which of several equally frequent pairs is merged first."""

_NO_ID = 0xFFFFFFFF


def count_corpus(
    corpus: TextBatches | WordCounter,
    *,
    pattern: str | PretokenPattern,
    separator: str | bytes | None,
    keep_separator: bool,
    counts: str | Path | None,
    num_threads: int,
    progress: TrainingProgress | None,
) -> WordCounter:
    """Count a corpus; arguments and errors as in `Tokenizer.train`."""
    if isinstance(corpus, WordCounter):
        return corpus
    find_pattern(pattern)

    def report(done: int, total: int | None) -> None:
        if progress is not None:
            progress("count", done, total)

    items = corpus
    if isinstance(items, list | tuple) and items and all(map(_is_path, items)):
        raise InputError(
            f"{items[0]!r} is the name of a file or folder, and a corpus of str is texts; give pathlib.Path "
            "for files"
        )
    if isinstance(items, Sequence) and items and all(isinstance(item, Path) for item in items):
        counter = WordCounter(pattern)
        save_to = None if counts is None else Path(counts)
        if save_to is not None and save_to.exists():
            counter = WordCounter.load(save_to)
            if counter.pattern != find_pattern(pattern).name:
                raise InputError(f"{save_to}: counted with pattern {counter.pattern!r}, expected {pattern!r}")
            if others := counter.files() - {item.absolute() for item in items}:
                raise InputError(f"{save_to}: holds {min(others)}, which is not in the corpus; remove it")
        counter.add_files(
            items,
            separator=separator,
            keep_separator=keep_separator,
            num_threads=num_threads,
            save_to=save_to,
            progress=report,
        )
        if not len(counter):
            raise InputError(
                f"{items[0]}: holds no text, nor does another file"
                if items[1:]
                else f"{items[0]}: holds no text"
            )
        return counter
    if counts is not None:
        raise TypeError("counts= needs a corpus that is a list of paths")
    counter = WordCounter(pattern)
    num_items = counter.add_batches(
        items,
        num_threads=num_threads,
        progress=report,
        separator=separator,
        keep_separator=keep_separator,
    )
    if num_items == 0:
        raise InputError("the corpus to train a tokenizer on holds no text")
    return counter


def _is_path(item: object) -> bool:
    """Say whether a text is the path of what is there, which texts are not."""
    if not isinstance(item, str) or not re.fullmatch(r"[^\n\0]*\w[^\n\0]*", item) or len(item) > 4096:
        return False
    try:
        return ("/" in item or os.sep in item or "." in item) and Path(item).exists()
    except (OSError, ValueError):  # a name that is too long, or cannot be written
        return False


def check_options(
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    min_frequency: int,
    limit_alphabet: int | None,
    initial_alphabet: bytes,
    max_token_length: int | None,
    ties: Ties,
    num_threads: int,
) -> None:
    """Look at the options of `learn_merges` before a corpus is counted, which may take hours."""
    if isinstance(special_tokens, str) or not all(isinstance(token, str) for token in special_tokens):
        raise TypeError(f"special_tokens must be a list of str, got {special_tokens!r}")
    num_special = len(special_tokens)
    if len(set(special_tokens)) != num_special or not all(special_tokens):
        raise InputError(f"special_tokens must be different and not empty, got {list(special_tokens)}")
    for name, value in (("vocab_size", vocab_size), ("min_frequency", min_frequency)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if min_frequency < 0:
        raise InputError(f"min_frequency must not be negative, got {min_frequency}")
    if max_token_length is not None and max_token_length < 1:
        raise InputError(f"max_token_length must be at least 1, got {max_token_length}")
    if ties not in ("hf", "lexicographic"):
        raise InputError(f"ties must be 'hf' or 'lexicographic', got {ties!r}")
    check_threads(num_threads)
    as_bytes = {content for _, content in _written_as_bytes(special_tokens) if len(content) == 1}
    least = num_special + 256 - len(as_bytes)
    if vocab_size < least:
        raise InputError(
            f"vocab_size must be at least {least} (256 bytes and {num_special} special tokens), "
            f"got {vocab_size}"
        )
    if limit_alphabet is not None and limit_alphabet < max(1, len(set(initial_alphabet))):
        raise InputError(
            f"limit_alphabet must be at least 1 and the {len(set(initial_alphabet))} bytes of "
            f"initial_alphabet, got {limit_alphabet}"
        )


def learn_merges(
    counter: WordCounter,
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    min_frequency: int,
    limit_alphabet: int | None,
    initial_alphabet: bytes,
    max_token_length: int | None,
    ties: Ties,
    num_threads: int,
    progress: TrainingProgress | None,
    release: bool,
) -> tuple[list[bytes], NDArray[np.uint32]]:
    """Learn tokens and merges; arguments and errors as in `Tokenizer.train`, for options that are checked.

    Args:
        release: empty the counter on the way, which saves its memory.

    Returns:
        The bytes of each id (empty for special tokens that no merge makes), and uint32 (num_merges, 4) rows
        of left id, right id, merged id, rank.
    """
    tokens = [b""] * len(special_tokens)
    # Hugging Face writes tokens in the byte-level alphabet and knows them by that text, special ones
    # included: a merge that arrives at the text of one takes its id.
    known = {content: i for i, content in _written_as_bytes(special_tokens)}
    byte_ids = [0] * 256
    for byte in sorted(range(256), key=lambda b: BYTE_TO_CHAR[b]):
        content = bytes([byte])
        byte_ids[byte] = known.get(content, len(tokens))
        if content not in known:
            tokens.append(content)
    first_id = len(tokens)
    kept = _alphabet(counter, limit_alphabet, initial_alphabet)
    num_tokens = vocab_size - first_id

    def report(made: int) -> None:
        if progress is not None:
            progress("merge", made, num_tokens)

    rows = counter.core().train(
        num_tokens=num_tokens,
        min_frequency=min_frequency,
        byte_ids=[byte_ids[byte] if byte in kept else _NO_ID for byte in range(256)],
        first_id=first_id,
        known=list(known.items()),
        max_token_length=max_token_length or 0,
        ties=ties,
        release_words=release,
        num_threads=num_threads,
        progress=report if progress is not None else None,
    )
    for byte in range(256):
        tokens[byte_ids[byte]] = bytes([byte])
    for left, right, merged in rows.tolist():
        content = tokens[left] + tokens[right]
        if merged == len(tokens):
            tokens.append(content)
        else:
            tokens[merged] = content
    for token, content in zip(special_tokens, tokens, strict=False):
        if content and token.encode() != content:
            raise InputError(
                f"special token {token!r} is how the byte-level alphabet writes {content!r}, a token of its "
                "own; choose another"
            )
    merges = np.empty((len(rows), 4), dtype=np.uint32)
    merges[:, :3] = rows
    merges[:, 3] = np.arange(len(rows))
    if progress is not None:
        progress("merge", len(tokens) - first_id, num_tokens)
    return tokens, merges


def _written_as_bytes(special_tokens: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """Find the special tokens whose text is that of some bytes in the byte-level alphabet."""
    for i, token in enumerate(special_tokens):
        if all(char in CHAR_TO_BYTE for char in token):
            yield i, bytes(CHAR_TO_BYTE[char] for char in token)


def _alphabet(counter: WordCounter, limit: int | None, initial: bytes) -> set[int]:
    """Give the bytes that merges may hold."""
    if limit is None:
        return set(range(256))
    counts = counter.byte_counts()
    # Among equals the one that comes first in the alphabet stays; Hugging Face leaves that to chance.
    order = sorted(
        (byte for byte in range(256) if counts[byte] or byte in initial),
        key=lambda byte: (byte not in initial, -counts[byte], BYTE_TO_CHAR[byte]),
    )
    return set(order[:limit])

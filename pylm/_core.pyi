"""C++ core: see the headers in csrc/ for contracts."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from pylm.text.texts import Texts

class Pattern:
    def __init__(self, *, gpt2: bool, max_digits: int, trailing_space_whole: bool) -> None: ...

def pretokenize(text: bytes, pattern: Pattern) -> NDArray[np.int64]: ...

class BpeEncoder:
    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: NDArray[np.uint32],
        pattern: Pattern,
        *,
        ignore_merges: bool,
    ) -> None: ...
    def encode(self, text: bytes) -> list[int]: ...
    def encode_texts(
        self, texts: Sequence[str] | Sequence[bytes], *, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_buffer(
        self, data: Buffer, offsets: NDArray[np.int64], *, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

class WordCounter:
    def __init__(self, pattern: Pattern) -> None: ...
    def add(self, texts: Texts, *, num_threads: int) -> None: ...
    def add_file(
        self,
        path: str,
        *,
        offset: int,
        max_bytes: int,
        separator: bytes,
        keep_separator: bool,
        num_threads: int,
    ) -> int: ...
    def add_words(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64], counts: NDArray[np.uint64]
    ) -> None: ...
    def words(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]: ...
    def num_words(self) -> int: ...
    def byte_counts(self) -> list[int]: ...
    def train(
        self,
        *,
        num_tokens: int,
        min_frequency: int,
        byte_ids: Sequence[int],
        first_id: int,
        known: Sequence[tuple[bytes, int]],
        max_token_length: int,
        ties: str,
        release_words: bool,
        num_threads: int,
        progress: Callable[[int], object] | None,
    ) -> NDArray[np.uint32]: ...

def exact_duplicates(texts: Texts, num_threads: int) -> NDArray[np.int64]: ...

class MinHasher:
    def __init__(
        self,
        scheme: str,
        num_perm: int,
        ngram: int,
        unit: str,
        seed: int,
        multipliers: Sequence[int],
        increments: Sequence[int],
    ) -> None: ...
    def signatures(self, texts: Texts, num_threads: int) -> NDArray[np.uint32] | NDArray[np.uint64]: ...
    def near(
        self,
        texts: Texts,
        normalized: Texts | None,
        threshold: float,
        bands: int,
        rows: int,
        verify: bool,
        keep: str,
        num_threads: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...

def signal_names() -> list[str]: ...
def signal_tokens(text: str) -> list[bytes]: ...
def compute_signals(
    texts: Texts, names: Sequence[str], num_threads: int
) -> tuple[list[NDArray[np.int64] | NDArray[np.float64]], NDArray[np.uint8]]: ...

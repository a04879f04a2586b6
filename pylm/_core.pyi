"""C++ core: see the headers in csrc/ for contracts."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from pylm.text.texts import Texts

class Pattern:
    def __init__(self, name: str) -> None: ...

def simd_levels() -> list[str]: ...
def pretokenize(text: bytes, pattern: Pattern, *, level: str | None = None) -> NDArray[np.int64]: ...
def next_safe_border(text: bytes, position: int, pattern: Pattern) -> int: ...
def char_classes() -> NDArray[np.uint8]: ...

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
        self, texts: Texts | Sequence[bytes], *, end_id: int | None, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_file(
        self, path: str, separator: bytes, *, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

class _SentencePieceModel(TypedDict):
    pieces: list[str]
    scores: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    charsmap: bytes

def read_sentencepiece_model(file: bytes) -> _SentencePieceModel: ...
def merges_of_scores(
    pieces: Sequence[str], kinds: NDArray[np.uint8], scores: NDArray[np.float32]
) -> tuple[NDArray[np.uint32], list[str]]: ...

class SentencePieceEncoder:
    def __init__(
        self,
        pieces: Sequence[str],
        kinds: NDArray[np.uint8],
        extra_characters: Sequence[str],
        merges: NDArray[np.uint32],
        *,
        byte_fallback: bool,
        fuse_unknown: bool,
        prefix: str,
        space_is_mark: bool,
        collapse_spaces: bool,
        split_words: bool,
        ignore_merges: bool,
        charsmap: bytes,
        simd: bool = True,
    ) -> None: ...
    @property
    def cuts_text(self) -> bool: ...
    def encode(self, text: bytes, *, with_prefix: bool = True) -> list[int]: ...
    def encode_texts(
        self, texts: Texts | Sequence[bytes], *, end_id: int | None, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_file(
        self, path: str, separator: bytes, *, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

class WordCounter:
    def __init__(self, pattern: Pattern) -> None: ...
    def add(self, texts: Texts | Sequence[bytes], *, num_threads: int) -> None: ...
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

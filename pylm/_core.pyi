"""C++ core: see the headers in csrc/ for contracts."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypedDict, overload

import numpy as np
from _typeshed import ReadableBuffer
from numpy.typing import NDArray

from pylm.text.texts import Texts

class Pattern:
    def __init__(self, name: str) -> None: ...

def simd_levels() -> list[str]: ...
def pretokenize(text: bytes, pattern: Pattern, *, level: str | None = None) -> NDArray[np.int64]: ...
def next_safe_border(text: bytes, position: int, pattern: Pattern) -> int: ...
def char_classes() -> NDArray[np.uint8]: ...

class TokenizerFile:
    def __init__(self, path: str | bytes) -> None: ...
    @staticmethod
    def of_buffer(buffer: ReadableBuffer) -> TokenizerFile: ...
    @staticmethod
    def is_one(content: bytes) -> bool: ...
    @property
    def description(self) -> bytes: ...
    @property
    def charsmap(self) -> bytes: ...
    @property
    def kinds(self) -> NDArray[np.uint8]: ...

class Vocabulary:
    def __init__(self, tokens: Sequence[bytes], merges: NDArray[np.uint32]) -> None: ...
    @staticmethod
    def of_file(file: TokenizerFile) -> Vocabulary: ...
    @staticmethod
    def from_rank_file(content: bytes) -> Vocabulary: ...
    def __len__(self) -> int: ...
    def tokens(self) -> list[bytes]: ...
    def token(self, id: int) -> bytes: ...
    def alphabet_tokens(self) -> list[str]: ...
    def packed(self) -> bytes: ...
    def merges(self) -> NDArray[np.uint32]: ...
    def canonical_merges(self) -> NDArray[np.uint32]: ...
    def rank_merges(self) -> NDArray[np.uint32]: ...
    def rank_file(self) -> bytes: ...

class HfModel:
    def __init__(self, content: bytes) -> None: ...
    def __len__(self) -> int: ...
    @property
    def rest(self) -> bytes: ...
    def find(self, text: str) -> int | None: ...
    def beyond_alphabet(self, vocabulary: Vocabulary) -> list[tuple[int, str]]: ...
    def vocabulary(self, *, byte_level: bool, hidden: Sequence[int]) -> Vocabulary: ...

class TokenDecoder:
    def __init__(
        self, vocabulary: Vocabulary, *, added: Sequence[tuple[int, str]], special: Sequence[int]
    ) -> None: ...
    @staticmethod
    def of_file(file: TokenizerFile) -> TokenDecoder: ...
    def __len__(self) -> int: ...
    def token(self, id: int) -> bytes: ...
    def decode(self, ids: NDArray[np.uint32], *, skip_special: bool) -> bytes: ...
    def decode_batch(
        self,
        ids: NDArray[np.uint32],
        offsets: NDArray[np.int64],
        *,
        skip_special: bool,
        num_threads: int,
    ) -> list[bytes]: ...
    def lengths(self, ids: NDArray[np.uint32]) -> NDArray[np.uint32]: ...

class AddedTokens:
    def __init__(self, tokens: Sequence[tuple[str, int, bool, bool, bool]]) -> None: ...
    def __len__(self) -> int: ...
    def find(self, text: bytes, enabled: bytes) -> list[tuple[int, int, int]]: ...
    def find_first(self, texts: Texts | Sequence[bytes], enabled: bytes) -> tuple[int, int, int] | None: ...

class AddedEncoder:
    def __init__(
        self,
        encoder: BpeEncoder | SentencePieceEncoder,
        *,
        raw: AddedTokens,
        normalized: AddedTokens,
        form: str | None,
        normalizer: Callable[[bytes], bytes] | None,
        keeps_ascii: bool,
        splitter: Callable[[bytes], list[bytes]] | None,
    ) -> None: ...
    def encode_texts(
        self,
        texts: Texts | Sequence[bytes],
        *,
        raw_enabled: bytes,
        normalized_enabled: bytes,
        end_id: int | None,
        num_threads: int,
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_file(
        self,
        path: str,
        separator: bytes,
        *,
        raw_enabled: bytes,
        normalized_enabled: bytes,
        num_threads: int,
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

def normalize(text: bytes, form: str) -> bytes: ...

class BpeEncoder:
    def __init__(
        self,
        vocabulary: Vocabulary,
        pattern: Pattern,
        *,
        ignore_merges: bool,
        drop_missing: bool = False,
        unknown: int | None = None,
        fuse_unknown: bool = False,
        file: TokenizerFile | None = None,
    ) -> None: ...
    def encode(self, text: bytes) -> list[int]: ...
    def encode_texts(
        self, texts: Texts | Sequence[bytes], *, end_id: int | None, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_file(
        self, path: str, separator: bytes, *, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

class _SentencePieceModel(TypedDict):
    vocabulary: Vocabulary
    kinds: NDArray[np.uint8]
    extra_characters: list[str]
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    charsmap: bytes

def read_sentencepiece_model(file: bytes) -> _SentencePieceModel: ...
def decoded_pieces(
    vocabulary: Vocabulary, kinds: NDArray[np.uint8], *, space_is_mark: bool
) -> Vocabulary: ...

class SentencePieceEncoder:
    def __init__(
        self,
        vocabulary: Vocabulary,
        kinds: NDArray[np.uint8],
        extra_characters: Sequence[str],
        *,
        byte_fallback: bool,
        fuse_unknown: bool,
        prefix: str,
        prefix_everywhere: bool,
        space_is_mark: bool,
        collapse_spaces: bool,
        split_words: bool,
        ignore_merges: bool,
        charsmap: bytes,
        simd: bool = True,
        file: TokenizerFile | None = None,
    ) -> None: ...
    @property
    def cuts_text(self) -> bool: ...
    def encode(self, text: bytes, *, begins: bool = True) -> list[int]: ...
    def encode_texts(
        self, texts: Texts | Sequence[bytes], *, end_id: int | None, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_file(
        self, path: str, separator: bytes, *, num_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

@overload
def write_tokenizer_file(
    description: bytes, vocabulary: Vocabulary, encoder: BpeEncoder, decoder: TokenDecoder
) -> bytes: ...
@overload
def write_tokenizer_file(
    description: bytes,
    vocabulary: Vocabulary,
    encoder: SentencePieceEncoder,
    decoder: TokenDecoder,
    *,
    kinds: NDArray[np.uint8],
    charsmap: bytes,
) -> bytes: ...

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

def exact_duplicates(texts: Texts | NormalizedTexts | TextParts, num_threads: int) -> NDArray[np.int64]: ...
def hash128(
    texts: Texts | NormalizedTexts, num_threads: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]: ...
def visit_bloom(
    words: NDArray[np.uint64], num_hashes: int, hashes: NDArray[np.uint64], add: bool
) -> NDArray[np.uint8]: ...

class TextParts:
    def __init__(self, texts: Texts, paragraphs: bool) -> None: ...
    def __getitem__(self, index: int) -> bytes: ...
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
    def normalized(self, table: CharacterTable, num_threads: int) -> NormalizedTexts: ...

_Symbols = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

def suffix_array(data: _Symbols, wide: bool, num_threads: int) -> NDArray[np.int32] | NDArray[np.int64]: ...
def lcp_array(
    data: _Symbols, suffix_array: NDArray[np.int32] | NDArray[np.int64], num_threads: int
) -> NDArray[np.int32] | NDArray[np.int64]: ...
def repeated_substrings(
    texts: Texts,
    against: Texts | None,
    length: int,
    keep: str,
    method: str,
    wide: bool,
    anchor_bytes: int,
    num_threads: int,
) -> tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def repeated_tokens(
    ids: NDArray[np.uint16] | NDArray[np.uint32],
    offsets: NDArray[np.int64],
    against_ids: NDArray[np.uint16] | NDArray[np.uint32] | None,
    against_offsets: NDArray[np.int64] | None,
    length: int,
    keep: str,
    method: str,
    wide: bool,
    anchor_bytes: int,
    num_threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def cut_spans(
    texts: Texts,
    num_docs: int,
    text: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    num_threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8], bool]: ...

_Runs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

def repeated_windows(
    texts: Texts, against: Texts | None, length: int, keep: str, num_threads: int
) -> tuple[_Runs, _Runs | None]: ...
def window_keys(
    texts: Texts,
    length: int,
    doc: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    divided: NDArray[np.uint64],
    least_level: int,
) -> tuple[NDArray[np.uint64], _Runs]: ...
def spans_of_windows(
    texts: Texts, length: int, doc: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> _Runs: ...
def copy_windows(
    texts: Texts, length: int, doc: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]: ...

class CharacterTable:
    def __init__(self, actions: NDArray[np.uint32], replacements: Sequence[str], numbers: bool) -> None: ...

class NormalizedTexts:
    def __init__(self, texts: Texts, table: CharacterTable, num_threads: int) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> bytes: ...
    @property
    def unknown(self) -> list[int]: ...
    def set(self, index: int, text: str) -> None: ...

def unite_pairs(
    parents: NDArray[np.uint32] | NDArray[np.uint64], a: NDArray[np.int64], b: NDArray[np.int64]
) -> None: ...
def find_roots(parents: NDArray[np.uint32] | NDArray[np.uint64]) -> None: ...

class MinHasher:
    def __init__(
        self,
        scheme: str,
        num_perm: int,
        ngram: int,
        unit: str,
        seed: int,
        wide: bool,
        multipliers: Sequence[int],
        increments: Sequence[int],
        level: str | None = None,
    ) -> None: ...
    def signatures(
        self, texts: Texts | NormalizedTexts, num_threads: int
    ) -> NDArray[np.uint32] | NDArray[np.uint64]: ...
    def band_keys(
        self, texts: Texts | NormalizedTexts, bands: int, rows: int, num_threads: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]: ...
    def near(
        self,
        texts: Texts,
        normalized: NormalizedTexts | None,
        threshold: float,
        bands: int,
        rows: int,
        verify: bool,
        keep: str,
        priority: NDArray[np.int64] | None,
        num_threads: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...

class NearIndex:
    def __init__(
        self,
        paths: Sequence[str],
        fingerprint: int,
        shingle_bits: int,
        low_shingles: bool,
        num_perm: int,
        wide: bool,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    def check(self, num_threads: int) -> None: ...
    def find(
        self,
        hasher: MinHasher,
        texts: Texts,
        normalized: NormalizedTexts | None,
        threshold: float,
        bands: int,
        rows: int,
        keep: str,
        priority: NDArray[np.int64] | None,
        among: bool,
        num_threads: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]: ...
    def add(
        self,
        hasher: MinHasher,
        texts: Texts,
        normalized: NormalizedTexts | None,
        threshold: float,
        bands: int,
        rows: int,
        keep: str,
        priority: NDArray[np.int64] | None,
        ids: NDArray[np.int64] | None,
        first_id: int,
        path: str,
        num_threads: int,
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]], int, bool]: ...
    def find_keys(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def merge(self, path: str, begin: int, end: int, num_threads: int) -> None: ...

class SubstringIndex:
    def __init__(self, paths: Sequence[str], fingerprint: int, length: int, gap: int, wide: bool) -> None: ...
    @property
    def num_windows(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    def check(self, num_threads: int) -> None: ...
    def find(
        self, texts: Texts, num_threads: int
    ) -> tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
    def add(self, texts: Texts, path: str, num_threads: int) -> tuple[int, int]: ...
    def merge(self, path: str, begin: int, end: int, num_threads: int) -> None: ...

def count_words(texts: Texts) -> NDArray[np.int64]: ...
def gather_ids(
    ids: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    docs: NDArray[np.int64],
    *,
    vocab_size: int,
    narrow: bool,
) -> tuple[NDArray[np.uint16] | NDArray[np.uint32], NDArray[np.int64]]: ...
def signal_names() -> list[str]: ...
def signal_tokens(text: str) -> list[bytes]: ...
def compute_signals(
    texts: Texts, names: Sequence[str], num_threads: int
) -> tuple[list[NDArray[np.int64] | NDArray[np.float64]], NDArray[np.uint8]]: ...

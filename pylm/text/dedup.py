"""Duplicates in a collection of texts: equal ones, near ones by MinHash, repeated parts by what they hold.

>>> from pylm import dedup
>>> texts = ["a b c d e f g h i j", "A b c d e f g h i j!", "nothing like the others"]
>>> dedup.near(texts).keep.tolist()
[True, False, True]
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import regex
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._substrings import KeepCopies, Method, Spans, Tokens, substrings
from pylm.text.texts import Texts

__all__ = [
    "KeepCopies",
    "Method",
    "MinHasher",
    "NearDuplicates",
    "Spans",
    "Tokens",
    "exact",
    "lcp_array",
    "match_probability",
    "near",
    "optimal_bands",
    "substrings",
    "suffix_array",
]

Symbols = bytes | bytearray | memoryview | NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

Unit = Literal["word", "char"]
Scheme = Literal["fast", "classic", "datatrove", "text-dedup"]
Keep = Literal["first", "longest"]

_MERSENNE_61 = (1 << 61) - 1
_PREPARED_TEXTS = 4096  # normalised in Python at a time, which bounds the copies


def exact(texts: Texts, *, num_threads: int = 0) -> NDArray[np.int64]:
    """Find texts that are equal byte by byte.

    Args:
        texts: num_docs texts; nulls of an Arrow column equal nothing, not even each other.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        int64 (num_docs,): for every text the index of the first equal one, its own where it is the first.

    Raises:
        TypeError: `texts` is no list of str and no Arrow column, or an item is no str; names the index.
        InputError: the column holds no text, or a str holds a lone surrogate.

    Example:
        >>> exact(["a", "b", "a"]).tolist()
        [0, 1, 0]
    """
    return _core.exact_duplicates(texts, num_threads=_check_threads(num_threads))


def suffix_array(data: Symbols, *, num_threads: int = 0) -> NDArray[np.int32] | NDArray[np.int64]:
    """Sort all suffixes of a text or of a sequence of token ids.

    Induced sorting (SA-IS: Nong, Zhang, Chan, DCC 2009), in linear time. Beside data and result it takes less
    than half as much memory as the result for real text, at most twice as much; ids beyond `size` are copied.

    Args:
        data: size symbols: bytes, or a contiguous array (size,) of uint8, uint16 or uint32, read in place; it
            must not change during the call.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        (size,): the starts of the suffixes in their order, the end of `data` before every symbol; int32 for
        fewer than 2^31 symbols, else int64.

    Raises:
        TypeError: `data` is neither bytes nor an array; a str has to be encoded first.
        InputError: the array has another dtype, more than one dimension or gaps.

    Example:
        >>> suffix_array(b"banana").tolist()
        [5, 3, 1, 0, 4, 2]
    """
    symbols = _to_symbols(data)
    return _core.suffix_array(symbols, wide=symbols.size >= 1 << 31, num_threads=_check_threads(num_threads))


def lcp_array(
    data: Symbols, suffix_array: NDArray[np.int32] | NDArray[np.int64], *, num_threads: int = 0
) -> NDArray[np.int32] | NDArray[np.int64]:
    """Tell how much neighbours of a suffix array have in common at their beginnings.

    Permuted LCP (Kärkkäinen, Manzini, Puglisi, CPM 2009), in linear time. Beside data and result it takes as
    much memory again as the result.

    Args:
        data: size symbols, as for `suffix_array`.
        suffix_array: int32 or int64 (size,), contiguous: what `suffix_array(data)` returned. That the entries
            lie in the text is checked, that they are its suffixes in order is not.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        (size,), of the dtype of `suffix_array`: at i the number of symbols that the suffixes at i - 1 and i
        share, 0 at 0.

    Raises:
        TypeError: `data` or `suffix_array` has another type.
        InputError: an array has another dtype or shape or gaps.
        ValueError: an entry lies outside of the text; names it.

    Example:
        >>> lcp_array(b"banana", suffix_array(b"banana")).tolist()
        [0, 1, 3, 0, 0, 2]
    """
    symbols = _to_symbols(data)
    _check_array("suffix_array", suffix_array, (np.int32, np.int64))
    if suffix_array.size != symbols.size:
        raise InputError(
            f"suffix_array must have one entry a symbol, {symbols.size}, got {suffix_array.size}; "
            "pass what suffix_array(data) returned"
        )
    return _core.lcp_array(symbols, suffix_array, num_threads=_check_threads(num_threads))


class MinHasher:
    """Turns texts into MinHash signatures; equal values of two signatures estimate the Jaccard similarity.

    The schemes:

    - `fast`: fast similarity sketching (Dahlgaard, Knudsen, Thorup, FOCS 2017): constant work a shingle
      whatever `num_perm`, unbiased, values uint32.
    - `classic`: one Carter-Wegman hash for every value (Broder 1997), uint32. Slow; for comparison.
    - `text-dedup`: the values of the text-dedup tool, uint32: lower case, split at what is no word character,
      XXH3, `seed` drawing the permutations. Texts under 5 words have no shingles.
    - `datatrove`: the values of the datatrove tool, uint64: its text normalisation, XXH64. Words are split at
      white space, where that tool runs spaCy, which also parts contractions and units; so signatures agree
      for texts without those. Its usual setting is `num_perm=112` (14 bands of 8), `seed=1`.

    `fast` and `classic` compare words (runs of letters, marks and digits of any script in lower case; in Han,
    kana, Thai and other scripts without spaces every character is a word) or characters (lower case, white
    space collapsed). A text shorter than `ngram` words is one single shingle; a text without words has none.
    """

    def __init__(
        self,
        *,
        num_perm: int = 128,
        ngram: int = 5,
        unit: Unit = "word",
        seed: int = 42,
        scheme: Scheme = "fast",
    ) -> None:
        """Fix the parameters.

        Args:
            num_perm: values a signature; the standard error of the estimate is at most 0.5 / sqrt(num_perm).
            ngram: words or characters a shingle.
            unit: what shingles are made of; the schemes of other tools know words only.
            seed: of the random functions, 0 <= seed < 2^64 (2^32 for the schemes of other tools).
            scheme: see above.

        Raises:
            InputError: a value outside its range.
        """
        _check_choice("unit", unit, get_args(Unit))
        _check_choice("scheme", scheme, get_args(Scheme))
        _check_int("num_perm", num_perm, 1, 1 << 20)
        _check_int("ngram", ngram, 1, 1 << 20)
        foreign = scheme in ("datatrove", "text-dedup")
        _check_int("seed", seed, 0, (1 << 32 if foreign else 1 << 64) - 1)
        if foreign and unit != "word":
            raise InputError(f"scheme={scheme!r} hashes words, got unit={unit!r}; use scheme='fast'")
        self.num_perm = num_perm
        self.ngram = ngram
        self.unit: Unit = unit
        self.seed = seed
        self.scheme: Scheme = scheme
        multipliers, increments = _permutations(seed, num_perm) if foreign else ([], [])
        self._core = _core.MinHasher(
            scheme=scheme,
            num_perm=num_perm,
            ngram=ngram,
            unit=unit,
            seed=seed,
            multipliers=multipliers,
            increments=increments,
        )

    def signatures(self, texts: Texts, *, num_threads: int = 0) -> NDArray[np.uint32] | NDArray[np.uint64]:
        """Hash every text.

        Args:
            texts: num_docs texts.
            num_threads: 0 uses all cores; the result does not depend on it.

        Returns:
            (num_docs, num_perm) uint32, or uint64 for `datatrove`. Rows of nulls and of texts without
            shingles hold the largest value of the type throughout.

        Raises:
            TypeError, InputError: as for `exact`.
        """
        num_threads = _check_threads(num_threads)
        if self.scheme in ("fast", "classic"):
            return self._core.signatures(texts, num_threads=num_threads)
        items = _to_list(texts)
        rows = self._core.signatures([""] * len(items), num_threads=num_threads)
        for start in range(0, len(items), _PREPARED_TEXTS):
            block = slice(start, start + _PREPARED_TEXTS)
            rows[block] = self._core.signatures(self._normalized(items[block]), num_threads=num_threads)
        return rows

    def _normalized(self, items: list[str | None]) -> pa.Array:
        """Words of every text joined by one space each, as the scheme's own tool sees them."""
        normalize = _text_dedup_words if self.scheme == "text-dedup" else _datatrove_words
        return pa.array([None if text is None else normalize(text) for text in items], pa.large_string())


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates of num_docs texts.

    Attributes:
        cluster: int64 (num_docs,); index of the kept text that stands for this one, its own where it is kept.
        keep: bool (num_docs,); False for texts that duplicate a kept one.
        pairs: int64 (num_pairs, 2); kept text and removed text, one row for every removed text, ascending.
        similarity: float64 (num_pairs,); Jaccard similarity of the shingle sets of the two, exact with
            verification, else estimated from the signatures (standard error at most 0.5 / sqrt(num_perm)).
        bands: number of bands of the signature that were compared.
        rows: values a band.
    """

    cluster: NDArray[np.int64]
    keep: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    similarity: NDArray[np.float64]
    bands: int
    rows: int


def near(
    texts: Texts,
    *,
    threshold: float = 0.8,
    num_perm: int = 128,
    ngram: int = 5,
    verify: bool = True,
    keep: Keep = "first",
    unit: Unit = "word",
    seed: int = 42,
    scheme: Scheme = "fast",
    bands: int | None = None,
    rows: int | None = None,
    num_threads: int = 0,
) -> NearDuplicates:
    """Find texts that are nearly the same as one that is kept.

    Texts whose signatures agree on all rows of a band are candidates. With `verify`, a candidate goes only
    if the Jaccard similarity of its shingle set with that of the kept text reaches `threshold`; texts are
    visited in the order of `keep`, and each is compared with the kept texts found through its bands, so that
    every cluster is a star around its kept text and chains of similar texts break. Without it, whatever is
    connected through candidates is one cluster, as other tools have it.

    Equal texts are handled first, so that thousands of copies cost no more than reading them. Texts without
    words, and nulls, have nothing to compare and are kept.

    Args:
        texts: num_docs texts.
        threshold: similarity from which texts are duplicates, 0 < threshold <= 1.
        num_perm: values a signature.
        ngram: words (or characters) a shingle.
        verify: check candidates against the texts.
        keep: which text of a cluster stays: the first, or the longest in bytes (the first of those).
        unit: "word" or "char".
        seed: of the signatures.
        scheme: of the signatures, see `MinHasher`.
        bands: number of bands; together with `rows`, or both None for `optimal_bands(threshold, num_perm)`.
            When candidates are verified, a missed pair counts nine times a false candidate in that choice,
            since false ones cost time only.
        rows: values a band.
        num_threads: 0 uses all cores; the result does not depend on it.

    Returns:
        Clusters, the texts to keep, and the pairs behind them.

    Raises:
        TypeError, InputError: as for `exact`, or an argument outside its range.

    Example:
        >>> found = near(["the quick brown fox jumps", "The quick brown fox jumps!", "the lazy dog"])
        >>> found.cluster.tolist()
        [0, 0, 2]
    """
    hasher = MinHasher(num_perm=num_perm, ngram=ngram, unit=unit, seed=seed, scheme=scheme)
    _check_threshold(threshold)
    _check_choice("keep", keep, get_args(Keep))
    num_threads = _check_threads(num_threads)
    if bands is None and rows is None:
        bands, rows = optimal_bands(threshold, num_perm, false_negative_weight=0.9 if verify else 0.5)
    elif bands is None or rows is None:
        raise InputError("bands and rows are given together or not at all")
    _check_int("bands", bands, 1, num_perm)
    _check_int("rows", rows, 1, num_perm)
    if bands * rows > num_perm:
        raise InputError(f"bands * rows must be at most num_perm={num_perm}, got {bands} * {rows}")
    normalized = None if scheme in ("fast", "classic") else hasher._normalized(_to_list(texts))
    cluster, similarity = hasher._core.near(
        texts,
        normalized=normalized,
        threshold=threshold,
        bands=bands,
        rows=rows,
        verify=verify,
        keep=keep,
        num_threads=num_threads,
    )
    kept = cluster == np.arange(len(cluster))
    removed = np.flatnonzero(~kept)
    pairs = np.stack([cluster[removed], removed], axis=1)
    return NearDuplicates(cluster, kept, pairs, similarity[removed], bands, rows)


@lru_cache
def optimal_bands(threshold: float, num_perm: int, *, false_negative_weight: float = 0.5) -> tuple[int, int]:
    """Choose bands and rows for a similarity threshold.

    Minimises (1 - w) * area of false positives + w * area of false negatives, where the areas lie under
    `match_probability` below the threshold and over it above (Leskovec, Rajaraman, Ullman, Mining of Massive
    Datasets, ch. 3). With w = 0.5 these are the choices of datasketch and text-dedup.

    Args:
        threshold: similarity from which pairs should be found, 0 < threshold <= 1.
        num_perm: values a signature.
        false_negative_weight: w, between 0 and 1.

    Returns:
        bands and rows, bands * rows <= num_perm.

    Example:
        >>> optimal_bands(0.8, 128)
        (9, 13)
    """
    _check_threshold(threshold)
    _check_int("num_perm", num_perm, 1, 1 << 20)
    if not 0 <= false_negative_weight <= 1:
        raise InputError(f"false_negative_weight must lie in [0, 1], got {false_negative_weight}")
    nodes, weights = np.polynomial.legendre.leggauss(96)
    below, above = threshold * (nodes + 1) / 2, threshold + (1 - threshold) * (nodes + 1) / 2
    best = (np.inf, 1, 1)
    for bands in range(1, num_perm + 1):
        rows = np.arange(1, num_perm // bands + 1)[:, None]
        false_positives = _match(below, bands, rows) @ weights * threshold / 2
        false_negatives = (1 - _match(above, bands, rows)) @ weights * (1 - threshold) / 2
        error = (1 - false_negative_weight) * false_positives + false_negative_weight * false_negatives
        least = int(np.argmin(error))
        best = min(best, (float(error[least]), bands, least + 1))
    return best[1], best[2]


def match_probability(similarity: float, bands: int, rows: int) -> float:
    """Probability that two texts of a Jaccard similarity share a bucket: 1 - (1 - similarity^rows)^bands.

    Example:
        >>> round(match_probability(0.8, 14, 8), 2)
        0.92
    """
    return 1 - (1 - similarity**rows) ** bands


def _match(
    similarity: NDArray[np.float64], bands: int, rows: NDArray[np.int64]
) -> NDArray[np.float64]:  # (num_rows, num_similarities)
    return np.asarray(1 - (1 - similarity**rows) ** bands, dtype=np.float64)


def _permutations(seed: int, num_perm: int) -> tuple[list[int], list[int]]:
    """Multipliers and increments as text-dedup and datatrove draw them; NumPy keeps this stream frozen."""
    random = np.random.RandomState(seed)
    multipliers = random.randint(1, _MERSENNE_61, size=num_perm, dtype=np.uint64)
    increments = random.randint(0, _MERSENNE_61, size=num_perm, dtype=np.uint64)
    return multipliers.tolist(), increments.tolist()


# That tool's \w is the one of `regex`, which takes marks for parts of words, not that of `re`.
_NON_WORD = regex.compile(r"\W+")


def _text_dedup_words(text: str) -> str:
    return str(_NON_WORD.sub(" ", text.lower())).strip(" ")


# datatrove's normalisation, a published rule: numbers (with at most one decimal part) become 0, these
# characters become spaces.
_NUMBER = regex.compile("\\p{Nd}+(?:[.,\u060c\u066b\u2396\u2397\u2398]\\p{Nd}+)?")
_DATATROVE_PUNCTUATION = str.maketrans(
    dict.fromkeys(
        "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
        "\u00ab\u00b4\u00bb\u2013\u2014\u2019\u201c\u201d\u201e\u2026\u2236\u2501\u25ba\u3001\u3002\u3008\u3009"
        "\u300a\u300b\u300c\u300d\u3010\u3011\uff01\uff05\uff08\uff09\uff0c\uff0e\uff11\uff1a\uff1b\uff1f\uff5e"
        + "".join(map(chr, (*range(9), 11, 12, *range(13, 32), *range(127, 160)))),
        " ",
    )
)


def _datatrove_words(text: str) -> str:
    text = str(_NUMBER.sub("0", text.lower())).translate(_DATATROVE_PUNCTUATION)
    if not text.isascii():
        decomposed = unicodedata.normalize("NFD", " ".join(text.split()))
        text = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
    return " ".join(text.split())


def _to_list(texts: Texts) -> list[str | None]:
    """Python strings of any accepted collection."""
    if isinstance(texts, list | tuple):
        _core.exact_duplicates(texts, num_threads=1)  # names the first item that is no text
        return list(texts)
    if hasattr(texts, "__arrow_c_array__"):
        column = pa.chunked_array([pa.array(texts)])
    elif hasattr(texts, "__arrow_c_stream__"):
        column = pa.chunked_array(texts)
    else:
        column = texts
    _core.exact_duplicates(
        column.slice(0, 0) if isinstance(column, pa.ChunkedArray) else column, num_threads=1
    )
    try:
        return list(column.cast(pa.large_string()).to_pylist())
    except pa.ArrowInvalid as error:
        raise InputError(f"texts: the binary column holds bytes that are no UTF-8 ({error})") from error


def _to_symbols(data: Symbols) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]:
    if isinstance(data, bytes | bytearray | memoryview):
        data = np.asarray(memoryview(data))
    _check_array("data", data, (np.uint8, np.uint16, np.uint32))
    return data


def _check_array(name: str, array: object, dtypes: tuple[type[np.generic], ...]) -> None:
    if not isinstance(array, np.ndarray):
        hint = "; encode it first" if isinstance(array, str) else ""
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}{hint}")
    if array.dtype not in dtypes:
        raise InputError(f"{name} must have dtype {', '.join(t.__name__ for t in dtypes)}, got {array.dtype}")
    if array.ndim != 1 or not array.flags.c_contiguous or not array.flags.aligned:
        raise InputError(
            f"{name} must be a contiguous array of one dimension, got shape {array.shape} with strides "
            f"{array.strides}; pass numpy.ascontiguousarray({name}).ravel()"
        )


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise InputError(f"{name} must lie in [{least}, {most}], got {value}")


def _check_threads(num_threads: int) -> int:
    _check_int("num_threads", num_threads, 0, 1 << 16)
    return num_threads


def _check_threshold(threshold: object) -> None:
    if not isinstance(threshold, int | float | np.integer | np.floating) or isinstance(threshold, bool):
        raise TypeError(f"threshold must be a float, got {type(threshold).__name__}")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must lie in (0, 1], got {threshold}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")

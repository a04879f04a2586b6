"""Near-duplicates by MinHash."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.text._checks import check_bool, check_choice, check_int, check_threads, check_threshold
from pylm.text._minhash import MinHasher, Scheme, Unit
from pylm.text._token_bytes import Tokens
from pylm.text.texts import Texts

Keep = Literal["first", "longest"]


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
    texts: Texts | Tokens,
    *,
    threshold: float = 0.8,
    num_perm: int = 128,
    ngram: int = 5,
    verify: bool = True,
    keep: Keep = "first",
    priority: Sequence[Any] | NDArray[Any] | None = None,
    unit: Unit = "word",
    seed: int = 42,
    scheme: Scheme = "fast",
    bands: int | None = None,
    rows: int | None = None,
    false_negative_weight: float | None = None,
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
        texts: num_docs texts; a `TokenArray`, or a list of arrays of ids, with `unit="token"`.
        threshold: similarity from which texts are duplicates, 0 < threshold <= 1.
        num_perm: values a signature.
        ngram: words (or characters, or tokens) a shingle.
        verify: check candidates against the texts.
        keep: which text of a cluster stays: the first, or the longest in bytes (the first of those).
        priority: in place of `keep`: (num_docs,) numbers or datetime64, such as dates, scores or ranks of
            sources; the text of a cluster with the largest stays, the first of those. Several rules become
            one by a sort: see the guide.
        unit: "word", "char" or "token".
        seed: of the signatures.
        scheme: of the signatures, see `MinHasher`.
        bands: number of bands; together with `rows`, or both None for `optimal_bands(threshold, num_perm)`.
        rows: values a band.
        false_negative_weight: of that choice; None for 0.9 when candidates are verified, since false ones
            cost time only then, and 0.5 otherwise.
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
    check_threshold(threshold)
    check_choice("keep", keep, get_args(Keep))
    check_bool("verify", verify)
    num_threads = check_threads(num_threads)
    bands, rows = choose_bands(threshold, num_perm, bands, rows, false_negative_weight, verify=verify)
    prepared = hasher._prepare(texts, num_threads)
    normalized = prepared if isinstance(prepared, _core.NormalizedTexts) else None
    cluster, similarity = hasher._core.near(
        cast(Texts, texts if normalized is not None else prepared),
        normalized=normalized,
        threshold=threshold,
        bands=bands,
        rows=rows,
        verify=verify,
        keep=keep,
        priority=None if priority is None else to_ranks(priority),
        num_threads=num_threads,
    )
    kept = cluster == np.arange(len(cluster))
    removed = np.flatnonzero(~kept)
    pairs = np.stack([cluster[removed], removed], axis=1)
    return NearDuplicates(cluster, kept, pairs, similarity[removed], bands, rows)


def to_ranks(priority: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Whole numbers in the order of the priorities, equal ones where those are."""
    values = np.asarray(priority)
    if values.ndim != 1 or values.dtype.kind not in "biufmM":
        raise InputError(
            "priority must be numbers or datetime64 of one dimension, "
            f"got {values.dtype} of shape {values.shape}"
        )
    missing = np.isnat(values) if values.dtype.kind in "mM" else np.isnan(values)
    if missing.any():
        raise InputError(
            f"priority[{int(np.argmax(missing))}] is {values[np.argmax(missing)]}; "
            "give texts without one the least value"
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def choose_bands(
    threshold: float,
    num_perm: int,
    bands: int | None,
    rows: int | None,
    false_negative_weight: float | None,
    *,
    verify: bool,
) -> tuple[int, int]:
    """Check bands and rows, or choose both where neither is given."""
    if bands is None and rows is None:
        if false_negative_weight is None:
            false_negative_weight = 0.9 if verify else 0.5
        bands, rows = optimal_bands(threshold, num_perm, false_negative_weight=false_negative_weight)
    elif bands is None or rows is None:
        raise InputError("bands and rows are given together or not at all")
    elif false_negative_weight is not None:
        raise InputError("false_negative_weight chooses bands and rows; give it or them")
    check_int("bands", bands, 1, num_perm)
    check_int("rows", rows, 1, num_perm)
    if bands * rows > num_perm:
        raise InputError(f"bands * rows must be at most num_perm={num_perm}, got {bands} * {rows}")
    return int(bands), int(rows)


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
    check_threshold(threshold)
    check_int("num_perm", num_perm, 1, 1 << 20)
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

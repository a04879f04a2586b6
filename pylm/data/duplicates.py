"""Duplicates of a corpus in memory: exact copies first, then near copies."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pylm.config import Config
from pylm.text import dedup


class DedupConfig(Config):
    """Which documents count as copies of each other."""

    exact: bool = True
    """Drop documents whose text stands earlier in the corpus."""
    near: bool = True
    """Drop documents whose shingles resemble those of one that stays."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of shingle sets from which two documents are near copies."""
    ngram: int = Field(default=5, ge=1)
    """Words of a shingle."""
    num_perm: int = Field(default=128, ge=2)
    """Numbers of a signature."""


@dataclass(frozen=True)
class Duplicates:
    """What to drop.

    Attributes:
        exact: bool (num_docs,), copies of an earlier document.
        near: bool (num_docs,), near copies of a document that stays; never also `exact`.
    """

    exact: NDArray[np.bool_]
    near: NDArray[np.bool_]


def find_duplicates(
    texts: pa.Array | pa.ChunkedArray, config: DedupConfig, *, num_threads: int = 0
) -> Duplicates:
    """Find the documents that a corpus does not need twice.

    The first of equal documents stays, and of near copies one that all dropped ones resemble. The result
    does not depend on the number of threads.

    Args:
        texts: one string a document.
        config: what to look for.
        num_threads: 0 takes all cores.
    """
    num_docs = len(texts)
    exact = np.zeros(num_docs, dtype=np.bool_)
    near = np.zeros(num_docs, dtype=np.bool_)
    if config.exact and num_docs:
        exact = dedup.exact(texts, num_threads=num_threads) != np.arange(num_docs)
    if config.near and num_docs:
        found = dedup.near(
            texts.filter(pa.array(~exact)),
            threshold=config.threshold,
            num_perm=config.num_perm,
            ngram=config.ngram,
            num_threads=num_threads,
        )
        near[~exact] = ~found.keep
    return Duplicates(exact, near)

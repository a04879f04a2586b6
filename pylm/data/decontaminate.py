"""Keep held-out text out of training: by overlap of long word n-grams, whatever the documents are called.

A training document overlaps when more than a share of its n-grams, or of the n-grams of some held-out
document, occur on the other side. Words are compared without case and punctuation, so that formatting hides
nothing.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pylm.config import Config

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MAX_WORDS = 4_000_000  # numbered words that may wait in memory, about 400 MB


class OverlapConfig(Config):
    """When a training document counts as seen in a held-out one."""

    ngram: int = Field(default=13, ge=1)
    """Words of an n-gram (GPT-3 and PaLM: 13 and 8)."""
    max_fraction: float = Field(default=0.2, ge=0, le=1)
    """Largest share of a document's n-grams that may occur on the other side."""


def find_overlaps(
    training: Iterable[str], heldout: Sequence[str], config: OverlapConfig
) -> NDArray[np.bool_]:
    """Find training documents that overlap with held-out ones.

    Args:
        training: texts, read once.
        heldout: texts; their n-grams are held in memory, 16 bytes each.
        config: length of the n-grams and the share.

    Returns:
        bool (number of training texts,): more than `max_fraction` of the different n-grams of the document,
        or of one held-out document, are common to both.

    Source: Brown et al., 2020, "Language Models are Few-Shot Learners", appendix C (13-gram overlap).
    """
    known = _Words()
    sets = [known.ngrams(text, config.ngram) for text in heldout]
    sizes = np.array([len(x) for x in sets], dtype=np.int64)
    grams = np.concatenate([np.zeros(0, np.uint64), *sets])
    owners = np.repeat(np.arange(len(sets)), sizes)
    order = np.argsort(grams, kind="stable")
    grams, owners = grams[order], owners[order]
    num_known = len(known.numbers)
    flags = []
    for text in training:
        if len(known.numbers) > num_known + _MAX_WORDS:
            known.forget(num_known)
        flags.append(_overlaps(known.ngrams(text, config.ngram), grams, owners, sizes, config.max_fraction))
    return np.array(flags, dtype=np.bool_)


def _overlaps(
    own: NDArray[np.uint64],
    grams: NDArray[np.uint64],
    owners: NDArray[np.int64],
    sizes: NDArray[np.int64],
    max_fraction: float,
) -> bool:
    first = np.searchsorted(grams, own)
    found = np.flatnonzero(grams[np.minimum(first, len(grams) - 1)] == own) if len(grams) else first[:0]
    if not len(found):
        return False
    if len(found) > max_fraction * len(own):
        return True
    last = np.searchsorted(grams, own[found], side="right")
    hits = np.concatenate([owners[a:b] for a, b in zip(first[found], last, strict=True)])
    return bool((np.bincount(hits, minlength=len(sizes)) > max_fraction * sizes).any())


class _Words:
    """Numbers words as they come up, so that equal words have equal numbers."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)
        self.numbers: defaultdict[str, int] = defaultdict(self._counter.__next__)

    def forget(self, num_kept: int) -> None:
        """Keep the first words only; the others get new numbers, never those of words gone by."""
        self.numbers = defaultdict(self._counter.__next__, itertools.islice(self.numbers.items(), num_kept))

    def ngrams(self, text: str, ngram: int) -> NDArray[np.uint64]:
        """Hash the different n-grams of a text, sorted; a text of fewer words is one n-gram of them all.

        N-grams are compared through 64-bit hashes of their words' numbers: 10 million collide with a
        probability of about 3e-6.
        """
        tokens = _WORD.findall(text.lower())
        if not tokens:
            return np.zeros(0, np.uint64)
        numbers = np.fromiter(map(self.numbers.__getitem__, tokens), dtype=np.uint64, count=len(tokens))
        width = min(ngram, len(tokens))
        state = np.zeros(len(tokens) - width + 1, dtype=np.uint64)
        with np.errstate(over="ignore"):
            for offset in range(width):
                state = (state ^ numbers[offset : offset + len(state)]) * _MULTIPLIER
                state ^= state >> np.uint64(29)
        return np.unique(state)

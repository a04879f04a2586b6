"""Overlap of word n-grams, with sets of tuples."""

import re
from collections.abc import Sequence


def ngrams(text: str, width: int) -> set[tuple[str, ...]]:
    """All n-grams of words; one of all words where there are fewer."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return set()
    if len(words) <= width:
        return {tuple(words)}
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}


def find_overlaps(
    training: Sequence[str], heldout: Sequence[str], width: int, max_fraction: float
) -> list[bool]:
    """Whether each training text shares more than a share of its, or of some held-out text's, n-grams."""
    others = [ngrams(text, width) for text in heldout]
    everything = set().union(*others)
    found = []
    for text in training:
        own = ngrams(text, width)
        of_own = len(own & everything) > max_fraction * len(own)
        of_other = any(len(own & other) > max_fraction * len(other) for other in others)
        found.append(of_own or of_other)
    return found

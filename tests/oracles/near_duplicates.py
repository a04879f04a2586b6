"""Near-duplicates by comparing every text with every kept one."""

import re
from collections.abc import Sequence


def shingles(text: str, width: int) -> set[tuple[str, ...]]:
    """Word n-grams of an ASCII text; one of all words where there are fewer."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    if not words:
        return set()
    return {tuple(words[i : i + width]) for i in range(max(1, len(words) - width + 1))}


def similarity(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    """Jaccard."""
    return len(a & b) / len(a | b) if a and b else 0.0


def near_duplicates(texts: Sequence[str], width: int, threshold: float) -> list[bool]:
    """Whether each text resembles an earlier one that stays."""
    kept: list[set[tuple[str, ...]]] = []
    found = []
    for text in texts:
        own = shingles(text, width)
        found.append(any(similarity(own, other) >= threshold for other in kept))
        if not found[-1]:
            kept.append(own)
    return found

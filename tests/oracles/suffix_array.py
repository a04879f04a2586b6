"""Suffixes sorted as they are, common prefixes counted symbol by symbol."""

from collections.abc import Sequence


def suffix_array(symbols: Sequence[int]) -> list[int]:
    """Starts of the suffixes in their order."""
    return sorted(range(len(symbols)), key=lambda start: symbols[start:])


def lcp_array(symbols: Sequence[int], order: Sequence[int]) -> list[int]:
    """Symbols shared by each suffix of the order with the one before it."""
    lcp = [0] * len(order)
    for i in range(1, len(order)):
        a, b = order[i - 1], order[i]
        while max(a, b) + lcp[i] < len(symbols) and symbols[a + lcp[i]] == symbols[b + lcp[i]]:
            lcp[i] += 1
    return lcp

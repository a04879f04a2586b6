"""Byte-pair training as its definition says, with all pairs counted anew for every merge."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

Merge = tuple[bytes, bytes]


def learn(
    words: Mapping[bytes, int], num_merges: int, *, min_frequency: int = 2, lexicographic: bool = False
) -> list[Merge]:
    """Learn merges from counted words.

    Args:
        words: different words and how often they occur.
        num_merges: most merges.
        min_frequency: a pair that occurs less often is not merged.
        lexicographic: of equally frequent pairs take the one with the greatest bytes; otherwise the one
            whose tokens are oldest, bytes being as old as their value.

    Returns:
        Left and right bytes of each merge.
    """
    age = {bytes([byte]): byte for byte in range(256)}
    parts = [([word[i : i + 1] for i in range(len(word))], count) for word, count in words.items()]
    merges: list[Merge] = []
    while len(merges) < num_merges:
        pairs: Counter[Merge] = Counter()
        for tokens, count in parts:
            for pair in pairwise(tokens):
                pairs[pair] += count
        if not pairs or max(pairs.values()) < max(1, min_frequency):
            break
        most = max(pairs.values())
        tied = [pair for pair, count in pairs.items() if count == most]
        best = max(tied) if lexicographic else min(tied, key=lambda pair: (age[pair[0]], age[pair[1]]))
        merges.append(best)
        age[best[0] + best[1]] = len(age)
        parts = [(_join(tokens, best), count) for tokens, count in parts]
    return merges


def _join(tokens: list[bytes], pair: Merge) -> list[bytes]:
    if pair[0] not in tokens:
        return tokens
    joined, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            joined.append(pair[0] + pair[1])
            i += 2
        else:
            joined.append(tokens[i])
            i += 1
    return joined

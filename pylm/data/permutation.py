"""Shuffling without a table: a keyed permutation of range(n) in O(1) memory."""

import math

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the step of SplitMix64
_NUM_ROUNDS = 4


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words, one to one: the output function of SplitMix64.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(
    index_N: NDArray[np.int64], size_N: NDArray[np.int64], key_N: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Map each index to its place in a permutation of range(size) chosen by a key.

    For a fixed size and key this is a bijection of range(size). An index is written as (left, right) on a
    grid of about sqrt(size) x sqrt(size) cells, and the halves take turns to be shifted by a keyed hash of
    the other (a Feistel network with addition in place of exclusive or). The grid has fewer than
    sqrt(size) + 1 cells too many; an index that lands on one is sent through again until it does not
    (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).

    Args:
        index_N: indices, each in range(size).
        size_N: sizes, >= 1, up to 2^62.
        key_N: keys that look random; `mix` makes them from any numbers.

    Returns:
        int64 (N,).
    """
    num_left_N = np.array([math.isqrt(size - 1) + 1 for size in size_N.tolist()], dtype=np.uint64)
    num_right_N = (size_N.astype(np.uint64) + num_left_N - np.uint64(1)) // num_left_N
    out_N = _permute_grid(index_N.astype(np.uint64), num_left_N, num_right_N, key_N)
    size_N = size_N.astype(np.uint64)
    while len(outside := np.flatnonzero(out_N >= size_N)):
        out_N[outside] = _permute_grid(
            out_N[outside], num_left_N[outside], num_right_N[outside], key_N[outside]
        )
    return out_N.astype(np.int64)


def _permute_grid(
    cell_N: NDArray[np.uint64],
    num_left_N: NDArray[np.uint64],
    num_right_N: NDArray[np.uint64],
    key_N: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    left_N, right_N = np.divmod(cell_N, num_right_N)
    key_N = key_N.copy()
    for _ in range(_NUM_ROUNDS):
        key_N += _GAMMA
        left_N = (left_N + mix(right_N + key_N) % num_left_N) % num_left_N
        key_N += _GAMMA
        right_N = (right_N + mix(left_N + key_N) % num_right_N) % num_right_N
    return left_N * num_right_N + right_N

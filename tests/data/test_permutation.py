import numpy as np
import pytest
from oracles import windows as oracle

from pylm.data.permutation import mix, permute


def permutation(size: int, key: int) -> np.ndarray:
    return permute(
        np.arange(size), np.full(size, size, np.int64), np.full(size, oracle.mix(key), dtype=np.uint64)
    )


def test_mix_is_splitmix64() -> None:
    """First outputs of SplitMix64 from state 0, as its reference implementation prints them."""
    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(x) for x in mix(state).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@pytest.mark.parametrize("first", range(1, 2001, 125))
def test_bijection_for_every_size(first: int) -> None:
    sizes = np.arange(first, first + 125)
    size_N, key_N = np.repeat(sizes, sizes), np.repeat(mix(sizes.astype(np.uint64)), sizes)
    starts_N = np.repeat(np.cumsum(sizes) - sizes, sizes)
    out_N = permute(np.arange(len(size_N)) - starts_N, size_N, key_N)
    assert out_N.min() == 0
    assert (out_N < size_N).all()
    assert np.bincount(out_N + starts_N, minlength=len(size_N)).max() == 1


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1024, 10_007])
def test_against_the_scalar_version(size: int) -> None:
    for key in (3, 12345):
        some = np.unique(np.linspace(0, size - 1, 40).astype(np.int64))
        expected = [oracle.permute(int(i), size, oracle.mix(key)) for i in some]
        assert permutation(size, key)[some].tolist() == expected


def test_huge_sizes_take_no_table() -> None:
    size = (1 << 62) - 57
    index_N = np.array([0, 1, 2, size - 1])
    out_N = permute(index_N, np.full(4, size), np.full(4, 7, dtype=np.uint64))
    assert len(set(out_N.tolist())) == 4
    assert all(0 <= x < size for x in out_N.tolist())


def chi_square(counts: np.ndarray) -> float:
    return float((((counts - counts.mean()) ** 2) / counts.mean()).sum())


@pytest.mark.parametrize("size", [7, 24, 100])
def test_every_place_is_equally_likely(size: int) -> None:
    """Where an index goes, over 20,000 keys: chi-square within 5 sigma of its mean, for every index."""
    num_keys = 20_000
    keys = mix(np.arange(num_keys, dtype=np.uint64))
    for index in (0, 1, size // 2, size - 1):
        out_N = permute(np.full(num_keys, index), np.full(num_keys, size), keys)
        statistic = chi_square(np.bincount(out_N, minlength=size))
        assert statistic < (size - 1) + 5 * np.sqrt(2 * (size - 1))


@pytest.mark.parametrize("size", [24, 101, 1000])
def test_neighbours_part(size: int) -> None:
    """The distance of two neighbours' places, over 20,000 keys, is that of a random pair."""
    num_keys = 20_000
    keys = mix(np.arange(num_keys, dtype=np.uint64))
    size_N = np.full(num_keys, size)
    for index in (0, size // 2, size - 2):
        a_N = permute(np.full(num_keys, index), size_N, keys)
        b_N = permute(np.full(num_keys, index + 1), size_N, keys)
        distances = np.bincount((b_N - a_N) % size, minlength=size)
        assert distances[0] == 0
        assert chi_square(distances[1:]) < (size - 2) + 5 * np.sqrt(2 * (size - 2))


def test_order_has_no_trend() -> None:
    """Rank correlation of index and place of 100,000 is within 4 sigma of none."""
    place_N = permutation(100_000, 5)
    correlation = np.corrcoef(np.arange(len(place_N)), place_N)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(place_N))
